"""Sweeps run all combinations, continue where they stopped, and report their results."""

import csv
import math
import re
import shlex
import statistics
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from scipy import stats
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rbp_lightning.cli.sweep.paired import paired_difference, t_quantile
from tests.cli.options import ROOT
from tests.cli.runs import Run
from tests.cli.sweep.own import NET
from tests.markdown import numbers, row_of, rows_of
from tests.training import hparams_of

TWO = ["--vary", "estimator=NeumannRBP,{class_path: TBPTT, init_args: {steps: 2}}", "--seeds=2"]


def rows(folder: str | Path) -> list[dict[str, str]]:
    with Path(folder, "runs.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def weights(row: dict[str, str]) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(Path(row["folder"], "checkpoints/last.ckpt"), weights_only=True)
    return checkpoint["state_dict"]


def measured(row: dict[str, str]) -> dict[str, str]:
    return {name: value for name, value in row.items() if name not in ("folder", "seconds")}


@pytest.fixture
def alone(cli):
    """The weights that ``fit`` gives for an estimator and a seed."""

    def fit(estimator: str, seed: int) -> dict[str, torch.Tensor]:
        own = [f"--estimator={estimator}", f"--seed_everything={seed}", f"--trainer.default_root_dir=alone{seed}"]
        quiet = ["--trainer.enable_progress_bar=false", "--trainer.logger=false"]
        status, _, err = cli("fit", *NET, *own, *quiet)
        assert status == 0, err
        return torch.load(f"alone{seed}/checkpoints/last.ckpt", weights_only=True)["state_dict"]

    return fit


def hparams(folder: str) -> tuple[list[str], list[str], dict[str, object]]:
    """The columns, metrics and values of a run in TensorBoard's HPARAMS tab."""
    events = EventAccumulator(folder, size_guidance={"tensors": 0}).Reload()
    names, metrics, values = hparams_of(events)
    # Every metric that is listed has values.
    assert all(len(events.Scalars(tag)) == 3 for tag in metrics)
    assert "hp_metric" not in events.Tags()["scalars"]
    return names, metrics, values


def test_runs_have_the_environment_of_their_sweep(cli, monkeypatch) -> None:
    for level in ("1", "2"):  # the second sweep finds a server that the first one started
        monkeypatch.setenv("LEVEL", level)
        status, _, err = cli("sweep", *NET, "--seeds=1", f"--folder=level{level}")
        assert status == 0, err
        (row,) = rows(f"level{level}")
        assert float(row["train/level"]) == float(level)


def test_a_sweep_of_two_estimators_and_two_seeds(cli, alone) -> None:
    status, out, err = cli("sweep", *NET, *TWO, "--test=best")
    assert status == 0, err
    found = rows("logs/sweep")
    assert [(row["estimator"][:10], row["seed"], row["state"]) for row in found] == [
        (name, seed, "finished") for name in ("NeumannRBP", '{"class_pa') for seed in "01"
    ]
    assert all(float(row["seconds"]) > 0 for row in found)
    # Each run equals that of fit.
    expected = alone("NeumannRBP", 1)
    assert all(torch.equal(value, expected[name]) for name, value in weights(found[1]).items())
    # The best checkpoint is that of the last epoch, and test and validation use the same data.
    assert all(row["test/loss"] == row["val/loss"] for row in found)

    # The HPARAMS tab distinguishes the runs.
    for row, estimator in zip(found, ("NeumannRBP", "NeumannRBP", "TBPTT", "TBPTT"), strict=True):
        names, metrics, values = hparams(row["folder"])
        assert names[:2] == ["estimator/class_path", "estimator/init_args/steps"]
        assert names.index("seed") < names.index("model") < names.index("rate")
        assert metrics == ["val/loss"]
        assert str(values["estimator/class_path"]).endswith(estimator)
        assert (values["model"], values["seed"]) == ("tests.cli.sweep.own.Net", int(row["seed"]))

    # The table of the report matches the file of the runs.
    first, second = ([float(row["val/loss"]) for row in found[start : start + 2]] for start in (0, 2))
    _, base, other = rows_of(Path("logs/sweep/report.md").read_text())
    assert (base[0], base[1], other[0]) == ("NeumannRBP", "2", "TBPTT(steps=2)")
    assert numbers(base[2]) == pytest.approx([statistics.mean(first), statistics.stdev(first)], rel=0.05)  # 2 digits
    interval = stats.ttest_rel(second, first).confidence_interval(0.95)
    difference = statistics.mean(second) - statistics.mean(first)
    assert numbers(other[3]) == pytest.approx([difference, interval.low, interval.high], rel=1e-2)
    assert "logs/sweep/report.md" in out
    assert "TBPTT(steps=2)" in out
    Image.open("logs/sweep/report.png").verify()

    # A second sweep has nothing to do, and one with a third seed runs only that.
    files = {path: path.stat().st_mtime_ns for path in Path("logs/sweep/runs").rglob("*")}
    status, _, err = cli("sweep", *NET, *TWO, "--test=best")
    assert status == 0, err
    assert err.count("finished before") == 4
    assert {path: path.stat().st_mtime_ns for path in Path("logs/sweep/runs").rglob("*")} == files
    status, _, err = cli("sweep", *NET, "--vary=estimator=NeumannRBP", "--seeds=3", "--test=best")
    assert status == 0, err
    assert (err.count("finished before"), err.count("finished: ")) == (2, 1)


def test_a_killed_sweep_continues_where_it_stopped(cli, zygote, tmp_path) -> None:
    words = ["sweep", *NET, "--jobs=1", f"--model.kill={tmp_path}/once"]
    # train.py would import all tasks in the processes of the sweep.
    killed = Run(zygote, tmp_path, [*words, "--folder=killed"], {}, ROOT / "rbp_lightning" / "__main__.py")
    assert killed.end() == -9, killed.error()
    (log,) = tmp_path.glob("killed/runs/*/output.txt")
    deadline = time.monotonic() + 60
    while "ended by SIGTERM" not in log.read_text():  # its parent is dead, so it cannot be waited for
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)
    assert not list(tmp_path.glob("killed/runs/*/result.json"))
    assert torch.load(log.parent / "checkpoints/last.ckpt", weights_only=True)["global_step"] == 3

    for folder in ("killed", "whole"):
        status, _, err = cli(*words, f"--folder={folder}")
        assert status == 0, err
    (found,), (expected,) = rows("killed"), rows("whole")
    assert measured(found) == measured(expected)
    assert not found["seconds"]  # unknown for a continued run
    same = weights(expected)
    assert all(torch.equal(value, same[name]) for name, value in weights(found).items())


def test_a_failing_run_does_not_stop_the_others(cli) -> None:
    words = ["sweep", *NET, "--vary=model.fail=true,false", "--jobs=1"]
    status, _, err = cli(*words)
    assert status == 1
    assert len(re.findall(r"RuntimeError: a bug of the module .*logs/sweep/runs/model.fail=true_seed=", err)) == 1
    assert "error: 1 of 2 runs failed" in err
    found = rows("logs/sweep")
    assert [row["state"] for row in found] == ["failed", "finished"]
    assert found[0]["error"] == "RuntimeError: a bug of the module"
    assert "Traceback" in Path(found[0]["folder"], "output.txt").read_text()
    report = Path("logs/sweep/report.md").read_text()
    assert row_of(report, "model.fail=true")[1] == "0"  # finished runs
    assert "RuntimeError: a bug of the module" in report
    # A failed run is tried again.
    status, _, err = cli(*words)
    assert (status, err.count("finished before"), err.count("failed: ")) == (1, 1, 1)


def test_a_metric_that_is_not_logged_is_reported_with_those_that_are(cli) -> None:
    status, _, err = cli("sweep", *NET, "--metric=val/los")
    assert status == 1
    (told,) = [line for line in err.splitlines() if "val/los " in line]
    assert all(name in told for name in ("train/level", "train/loss", "val/loss"))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--vary=estimatr=BPTT,RBP"], "--estimatr=BPTT. Did you mean '--estimator'?"),
        (["--vary=estimator=NeumanRBP,BPTT"], "'NeumanRBP'. Did you mean 'NeumannRBP'?"),
        (["--vary=estimator=BPTT,RBP", "--vary=estimator.steps=5"], "BPTT has no option 'steps'"),
        (["--vary=model.rate=many,0.1"], "--model.rate"),
        (["--vary=model.rate"], "write KEY=VALUE,VALUE"),
        (["--vary=model.rate=1,1"], "1 is listed twice"),
        (["--vary=model.rate=1", "--vary=model.rate=2"], "--vary model.rate is given twice"),
        (["--vary=model.rate=log:1:2"], "add --search optuna"),
        (["--vary=model.rate=log:0:2", "--search=optuna"], "from 0.0 to 2.0"),
        (["--seds=3"], "Did you mean '--seeds'?"),
        (["--seeds=0"], "seeds=0 must be a whole number of at least 1"),
        (["--seeds=few"], "--seeds"),
        (["--only=2", "--seeds=2"], "--only=2: the sweep has the runs 0 to 1"),
        (["--ckpt_path=last"], "--ckpt_path"),
        (["--checkpoint.monitor=null"], "set --metric"),
        (["--trainer.devices=2"], "one process"),
        (["--search=optuna"], "--search needs --vary"),
    ],
)
def test_invalid_options_are_refused_in_one_line_before_anything_runs(cli, words: list[str], message: str) -> None:
    status, _, err = cli("sweep", *NET, *words)
    assert status in (1, 2)
    (line,) = [line for line in err.splitlines() if line]
    assert line.startswith("error: ")
    assert message in line
    assert line.count("Did you mean") <= 1
    assert not list(Path().iterdir())


def test_each_slurm_task_is_one_run(cli) -> None:
    status, out, err = cli("sweep", *NET, "--vary=model.rate=0.1,0.2", "--seeds=2", "--slurm")
    assert status == 0, err
    assert not list(Path().iterdir())
    assert re.search(r"^#SBATCH --array=0-3$", out, re.MULTILINE)
    (line,) = re.findall(r"^srun (.*)$", out, re.MULTILINE)
    command = shlex.split(line)
    status, _, err = cli(*command[2:-1], "3")
    assert status == 0, err
    (result,) = Path("logs/sweep/runs").glob("*/result.json")
    assert result.parent.name.startswith("model.rate=0.2_seed=1_")
    assert not Path("logs/sweep/report.md").exists()


def test_seeded_options_get_the_seed(cli) -> None:
    status, _, err = cli(
        "sweep", *NET, "--seeded=trainer.max_epochs", "--seeds=2", "--jobs=1", "--metric=test/loss", "--test=last"
    )
    assert status == 0, err
    found = rows("logs/sweep")
    assert "val/loss" in found[1]
    assert not found[0]["val/loss"]  # seed 0 trains for 0 epochs
    assert float(found[1]["val/loss"]) > 0


def test_averaged_weights_are_tested(cli) -> None:
    average = "--trainer.callbacks+=lightning.pytorch.callbacks.EMAWeightAveraging"
    status, _, err = cli("sweep", *NET, "--seeds=1", "--test=best", average)
    assert status == 0, err
    (row,) = rows("logs/sweep")
    assert row["test/loss"] == row["val/loss"]  # of the same data


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 9, 30, 101])
def test_quantiles_equal_those_of_student_s_distribution(freedom: int) -> None:
    for probability in (0.6, 0.9, 0.975, 0.9995):
        assert t_quantile(probability, freedom) == pytest.approx(stats.t.ppf(probability, freedom), rel=1e-9)


def test_only_finite_values_of_the_same_seed_are_paired() -> None:
    values, others = {0: 1.0, 1: math.nan, 2: 4.0, 3: 7.0, 5: 9.0}, {0: 0.5, 1: 2.0, 2: 3.0, 3: 5.0, 4: 9.0}
    found = paired_difference(values, others)
    expected = stats.ttest_rel([1.0, 4.0, 7.0], [0.5, 3.0, 5.0])
    assert found is not None
    assert found.pairs == 3
    assert (found.low, found.high) == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert paired_difference({0: 1.0, 1: math.inf}, {0: 2.0, 1: 1.0}) is None
