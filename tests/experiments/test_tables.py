"""Each experiment runs, stores its runs and prints its table."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from experiments.classification import classification
from experiments.hypergradient import hypergradient
from experiments.hypergradient_error import hypergradient_error
from experiments.hypergradient_products import hypergradient_products
from experiments.reasoning import reasoning
from experiments.runs import config_keys, run_missing
from experiments.tables import laid_out
from experiments.trust import trust
from experiments.warm_start import warm_start
from rbp_lightning import UserError
from tests.markdown import numbers, row_of, rows_of

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # solves are cut short


NO_CALLBACKS = " --trainer.callbacks=null"  # the monitor has its own tests


@pytest.fixture
def twice(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Runs a short experiment twice, the second time from its file; returns its table."""

    def run(experiment: Callable[..., None], overrides: str, **options: Any) -> str:
        csv = tmp_path / "runs.csv"
        overrides += f" --trainer.accelerator=cpu --trainer.logger.save_dir={tmp_path}"
        experiment(overrides=overrides, csv=csv, **options)
        printed, rows = capsys.readouterr().out, csv.read_text()
        experiment(overrides=overrides, csv=csv, **options)
        table = capsys.readouterr().out
        assert printed.endswith(table)
        assert csv.read_text() == rows
        return table

    return run


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.usefixtures("cora")
def test_warm_starts_reduce_the_steps(twice: Callable[..., str], tmp_path: Path) -> None:
    overrides = "--trainer.max_epochs=3 --trainer.check_val_every_n_epoch=3 --model.cell.num_hidden=16" + NO_CALLBACKS
    table = twice(warm_start, overrides, seeds=1)
    steps = [numbers(row[1])[0] for row in rows_of(table)[1:]]
    assert len(steps) == 3
    assert steps[0] == 100
    assert steps[0] > steps[1] > steps[2]
    Image.open(tmp_path / "runs.png").verify()


@pytest.mark.slow
def test_the_table_of_hypergradients(twice: Callable[..., str], tmp_path: Path) -> None:
    options = {"task": "configs/hypergrad.yaml", "estimators": ["BPTT", "NeumannRBP:5"], "seeds": 2}
    table = twice(hypergradient, "--trainer.max_epochs=2 --estimator.solver.max_steps=20", **options)
    _, *figures, seeds = row_of(table, "NeumannRBP(steps=5)")
    assert [len(numbers(figure)) for figure in figures] == [2, 2, 2, 2, 1]  # with standard deviations, but for the time
    assert seeds == "2"
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_the_table_of_reasoning_has_a_column_per_size_and_a_row_per_variant(twice, tmp_path: Path) -> None:
    few = "--trainer.limit_train_batches=2 --trainer.max_epochs=1 --trainer.log_every_n_steps=1 "
    few += "--data.num_train=256 --data.num_val=2 --data.num_test=2 --trainer.check_val_every_n_epoch=1 "
    few += "--model.eval_steps=[2,4]" + NO_CALLBACKS
    options = {"task": "configs/mazes.yaml", "estimators": ["JFB"], "also": ["loops=0.1"], "seeds": 2}
    sizes, *table = rows_of(twice(reasoning, few, **options))
    assert re.findall(r"size (\d+)", " ".join(sizes)) == ["5", "9", "15", "29"]
    assert [row[0] for row in table] == ["JFB", "JFB, loops=0.1"]
    for row in table:
        assert [numbers(share)[-1] for share in row[1:5]] == [2] * 4  # seeds
        assert min(numbers(" ".join(row[5:]))) >= 0
    header, *rows = csv.reader((tmp_path / "runs.csv").read_text().splitlines())
    assert {row[header.index("steps")] for row in rows} == {"2 4"}
    residuals = rows[0][header.index("residual_9")], rows[0][header.index("residual_9_loops=0.1")]
    assert residuals[0] != residuals[1]
    assert all(len(cell.split()) == 2 for cell in residuals)
    Image.open(tmp_path / "runs.png").verify()


@pytest.mark.slow
def test_the_table_of_classification(twice) -> None:
    few = "--trainer.max_epochs=1 --trainer.check_val_every_n_epoch=1 --trainer.log_every_n_steps=1 "
    few += "--data.num_train=128 --data.num_val=20 --data.num_test=20 --model.cell.num_hidden=4" + NO_CALLBACKS
    table = twice(classification, few, estimators=["JFB", "BPTT"], seeds=1)
    _, *found = rows_of(table)
    assert [(row[0], row[-1]) for row in found] == [("JFB", "1"), ("BPTT", "1")]
    assert float(found[0][3]) < float(found[1][3])  # peak memory: JFB tapes one step, BPTT all


def test_errors_of_hypergradients_fall_with_the_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hypergradient_error([1, 50], inner_steps=300, lengths=[20], csv=tmp_path / "hypergradient_error.csv")
    printed = capsys.readouterr().out
    for estimator in ("RBP", "NeumannRBP", "CGRBP", "TBPTT"):
        pairs = [numbers(line)[-2:] for line in printed.splitlines() if f", {estimator}: " in line]
        assert len(pairs) == 2
        assert all(after < before / 2 for before, after in pairs)
    assert laid_out("hypergradient_error.csv", [tmp_path]) in printed
    Image.open(tmp_path / "hypergradient_error.png").verify()


def test_hypergradient_products(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hypergradient_products([2, 40], inner_steps=300, steps=4, minibatch_steps=8, seeds=2, out=tmp_path)
    printed = capsys.readouterr().out
    for name in ("hypergradient_products.csv", "hypergradient_minibatches.csv"):
        assert laid_out(name, [tmp_path]) in printed
    found = [row for row in rows_of(printed) if row[1] in ("2", "40")]
    assert [row[1] for row in found] == ["2", "40"] * 2
    for few, many in zip(found[::2], found[1::2], strict=True):
        assert float(many[3]) < float(few[3]) / 2  # by conjugate gradients
    assert [row[2] for row in rows_of(printed) if row[1] == "fresh minibatches"] == ["80"] * 2


def test_estimators_that_are_wrong_near_radius_1_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust([0.5, 0.99, 1.05], png=tmp_path / "trust.png")
    _, *rows = rows_of(capsys.readouterr().out)
    names = [row[0].partition("(")[0] for row in rows]
    assert names == ["BPTT", "TBPTT", "RBP", "NeumannRBP", "CGRBP", "AdaptiveNeumann"]
    for _, small, near, above in rows:
        assert float(small) < 1e-3
        # Every large error near spectral radius 1 is reported.
        assert numbers(near)[0] < 2e-3 or "warned" in near
        assert "warned" in above
    Image.open(tmp_path / "trust.png").verify()


def test_a_file_of_another_version_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("seed,loss\n0,1.0\n")
    with pytest.raises(UserError, match=r"runs\.csv.*delete it"):
        run_missing(tmp_path / "runs.csv", [{"seed": "0"}], ["accuracy"], lambda keys: {})
    assert (tmp_path / "runs.csv").read_text() == "seed,loss\n0,1.0\n"


def test_only_a_changed_content_of_a_config_makes_its_runs_stale(tmp_path: Path) -> None:
    config = tmp_path / "config.yaml"

    def key(text: str) -> str:
        config.write_text(text)
        return config_keys(str(config))["sha256"]

    before = key("model: {a: 1, b: [2, 3]}\ntrainer:\n  max_epochs: 4\n")
    assert key("# A comment.\ntrainer:\n  max_epochs: 4  # another\nmodel:\n  b: [2, 3]\n  a: 1\n") == before
    assert key("model: {a: 1, b: [3, 2]}\ntrainer:\n  max_epochs: 4\n") != before
    assert key("model: {a: 1, b: [2, 3]}\ntrainer:\n  max_epochs: '4'\n") != before
    with pytest.raises(UserError, match=r"config.yaml' is not YAML"):
        key("model: {a: 1")


def test_a_missing_config_is_an_error() -> None:
    with pytest.raises(UserError, match=r"configs/nowhere\.yaml"):
        hypergradient("configs/nowhere.yaml")
