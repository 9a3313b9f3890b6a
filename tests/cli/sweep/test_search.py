"""Searches by Optuna, if it is installed."""

import csv
from pathlib import Path

import pytest
import torch

from tests.cli.sweep.own import NET
from tests.markdown import rows_of

optuna = pytest.importorskip("optuna")

WORDS = ["sweep", *NET, "--search=optuna", "--vary=model.rate=log:1e-4:1e-1", "--vary=estimator=NeumannRBP,CGRBP"]


def test_a_search_is_stored_and_can_be_continued(cli) -> None:
    for trials in (8, 10):
        status, _, err = cli(*WORDS, f"--trials={trials}", "--jobs=1")
        assert status == 0, err
        study = optuna.load_study(study_name="sweep", storage="sqlite:///logs/sweep/optuna.db")
        assert len(study.trials) == trials
    with Path("logs/sweep/runs.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 10
    states = [trial.state.name for trial in study.trials]
    assert states.count("PRUNED") == sum(row["state"] == "pruned" for row in rows) > 0
    assert all(1e-4 <= float(row["model.rate"]) <= 1e-1 for row in rows)
    assert {row["estimator"] for row in rows} == {"NeumannRBP", "CGRBP"}
    # The report and the study agree on the best run.
    best = min((row for row in rows if row["state"] == "finished"), key=lambda row: float(row["val/loss"]))
    assert float(best["model.rate"]) == study.best_params["model.rate"]
    assert float(best["val/loss"]) == study.best_value
    _, first, *_ = rows_of(Path("logs/sweep/report.md").read_text())
    assert first[:2] == [f"model.rate={best['model.rate']}, {best['estimator']}", "finished"]
    # A pruned run ends early, with a checkpoint.
    pruned = next(row for row in rows if row["state"] == "pruned")
    last = Path(pruned["folder"], "checkpoints/last.ckpt")
    assert torch.load(last, weights_only=True)["epoch"] < 2
    # A sweep of the same values completes the pruned run.
    values = [f"--vary={key}={pruned[key]}" for key in ("model.rate", "estimator")]
    status, _, err = cli("sweep", *NET, *values)
    assert status == 0, err
    assert torch.load(last, weights_only=True)["epoch"] == 2


def test_a_search_continues_after_failed_runs(cli) -> None:
    words = ["sweep", *NET, "--search=optuna", "--vary=model.fail=true,false", "--trials=4", "--jobs=1"]
    status, _, err = cli(*words)
    assert status == 1
    assert "RuntimeError: a bug of the module" in err
    with Path("logs/sweep/runs.csv").open(newline="") as file:
        assert {row["state"] for row in csv.DictReader(file)} == {"failed", "finished"}
