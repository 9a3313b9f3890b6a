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
from experiments.runs import run_missing
from experiments.tables import laid_out
from experiments.trust import trust
from experiments.warm_start import warm_start
from rbp_lightning import UserError

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # solves are cut short

NUMBER = r"[\d.]+ ± [\d.]+"


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
    overrides = "--trainer.max_epochs=3 --trainer.check_val_every_n_epoch=3 --model.cell.num_hidden=16"
    table = twice(warm_start, overrides, seeds=1)
    steps = [float(found) for found in re.findall(r"^\| [a-z ]+ \| ([\d.]+) \| ", table, re.MULTILINE)]
    assert len(steps) == 3
    assert steps[0] == 100
    assert steps[0] > steps[1] > steps[2]
    Image.open(tmp_path / "runs.png").verify()


@pytest.mark.slow
def test_the_table_of_hypergradients(twice: Callable[..., str], tmp_path: Path) -> None:
    options = {"task": "configs/hypergrad.yaml", "estimators": ["BPTT", "NeumannRBP:5"], "seeds": 2}
    table = twice(hypergradient, "--trainer.max_epochs=2 --estimator.solver.max_steps=20", **options)
    row = rf"\| NeumannRBP\(steps=5\) \| {NUMBER} \| {NUMBER} % \| {NUMBER} % \| {NUMBER} \| [\d.]+ \| 2 \|"
    assert re.search(row, table)
    assert len((tmp_path / "runs.csv").read_text().splitlines()) == 5


@pytest.mark.slow
def test_the_table_of_reasoning_has_a_column_per_size_and_a_row_per_variant(twice, tmp_path: Path) -> None:
    few = "--trainer.limit_train_batches=2 --trainer.max_epochs=1 --trainer.log_every_n_steps=1 "
    few += "--data.num_train=256 --data.num_val=2 --data.num_test=2 --trainer.check_val_every_n_epoch=1 "
    few += "--model.eval_steps=[2,4] --trainer.callbacks=null"  # the monitor has its own tests
    options = {"task": "configs/mazes.yaml", "estimators": ["JFB"], "also": ["loops=0.1"], "seeds": 2}
    table = twice(reasoning, few, **options).splitlines()
    assert re.findall(r"size (\d+)", table[0]) == ["5", "9", "15", "29"]
    shares = r" \| ".join([rf"{NUMBER} % \(\d of 2\)"] * 4)
    for row, name in zip(table[2:], ["JFB", "JFB, loops=0.1"], strict=True):
        assert re.fullmatch(rf"\| {name} \| {shares} \| [\d.]+e[+-]\d+ \| \d+ \|", row)
    header, *rows = csv.reader((tmp_path / "runs.csv").read_text().splitlines())
    assert {row[header.index("steps")] for row in rows} == {"2 4"}
    residuals = rows[0][header.index("residual_9")], rows[0][header.index("residual_9_loops=0.1")]
    assert residuals[0] != residuals[1]
    assert all(len(cell.split()) == 2 for cell in residuals)
    Image.open(tmp_path / "runs.png").verify()


@pytest.mark.slow
def test_the_table_of_classification(twice) -> None:
    few = "--trainer.max_epochs=1 --trainer.check_val_every_n_epoch=1 --trainer.log_every_n_steps=1 "
    few += "--data.num_train=128 --data.num_val=20 --data.num_test=20 --model.cell.num_hidden=4"
    table = twice(classification, few, estimators=["JFB", "BPTT"], seeds=2)
    row = rf"^\| (.*) \| {NUMBER} % \| [\d.]+ \| ([\d.]+) \| [\d.]+ \| \d+ \| 2 \|$"
    found = re.findall(row, table, re.MULTILINE)
    assert [name for name, _ in found] == ["JFB", "BPTT"]
    assert float(found[0][1]) < float(found[1][1])  # JFB tapes one step, BPTT all


def test_errors_of_hypergradients_fall_with_the_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hypergradient_error([1, 50], inner_steps=300, lengths=[20], csv=tmp_path / "hypergradient_error.csv")
    printed = capsys.readouterr().out
    for estimator in ("RBP", "NeumannRBP", "CGRBP", "TBPTT"):
        pairs = re.findall(rf"regression, {estimator}: ([\d.e+-]+), ([\d.e+-]+)$", printed, re.MULTILINE)
        assert len(pairs) == 2
        assert all(float(after) < float(before) / 2 for before, after in pairs)
    assert len(re.findall(r"^\| \w+ regression \| 20 \| [\d.e+-]+ \|", printed, re.MULTILINE)) == 2
    assert laid_out("hypergradient_error.csv", [tmp_path]) in printed
    Image.open(tmp_path / "hypergradient_error.png").verify()


def test_hypergradient_products(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    hypergradient_products([2, 40], inner_steps=300, steps=4, minibatch_steps=8, seeds=2, out=tmp_path)
    printed = capsys.readouterr().out
    for name in ("hypergradient_products.csv", "hypergradient_minibatches.csv"):
        assert laid_out(name, [tmp_path]) in printed
    by_conjugate_gradients = re.findall(r"regression \| (\d+) \| \S+ \| (\S+) \|", printed)
    assert [count for count, _ in by_conjugate_gradients] == ["2", "40"] * 2
    for (_, few), (_, many) in zip(by_conjugate_gradients[::2], by_conjugate_gradients[1::2], strict=True):
        assert float(many) < float(few) / 2
    assert printed.count("| fresh minibatches | 80 |") == 2


def test_estimators_that_are_wrong_near_radius_1_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    trust([0.5, 0.99, 1.05], png=tmp_path / "trust.png")
    row = r"^\| (\w+)(\(\S+\))? \| (\S+)  \| (\S+) (\(told\))? \| \(told\) \|$"
    rows = re.findall(row, capsys.readouterr().out, re.MULTILINE)
    assert [found[0] for found in rows] == ["BPTT", "TBPTT", "RBP", "NeumannRBP", "CGRBP", "AdaptiveNeumann"]
    # Every large error near spectral radius 1 is reported.
    assert all(float(found[2]) < 1e-3 for found in rows)
    assert all(float(found[3]) < 2e-3 or found[4] for found in rows)
    Image.open(tmp_path / "trust.png").verify()


def test_a_file_of_another_version_is_refused_and_not_changed(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("seed,loss\n0,1.0\n")
    with pytest.raises(UserError, match=r"runs\.csv was written by another version: delete it"):
        run_missing(tmp_path / "runs.csv", [{"seed": "0"}], ["accuracy"], lambda keys: {})
    assert (tmp_path / "runs.csv").read_text() == "seed,loss\n0,1.0\n"


def test_a_missing_config_is_an_error() -> None:
    with pytest.raises(UserError, match=r"'configs/nowhere\.yaml' cannot be read: No such file"):
        hypergradient("configs/nowhere.yaml")
