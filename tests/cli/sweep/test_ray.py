"""Sweeps on a local Ray cluster, if Ray is installed."""

import csv
from pathlib import Path

import pytest

from tests.cli.runs import Run, Zygote
from tests.cli.sweep.own import NET

pytest.importorskip("ray")

SEARCH = ["--search=optuna", "--trials=8", "--vary=model.rate=log:1e-4:1e-1", "--vary=estimator=NeumannRBP,CGRBP"]


def swept(zygote: Zygote, folder: Path, *words: str) -> tuple[int | None, list[dict[str, str]]]:
    """Runs a sweep; returns its exit status and its rows without the times."""
    folder.mkdir()
    run = Run(zygote, folder, ["sweep", *NET, *words], {"RAY_USAGE_STATS_ENABLED": "0"})
    status = run.end(300)
    rows = folder / "logs/sweep/runs.csv"
    assert rows.exists(), run.error()[-3000:]
    with rows.open(newline="") as file:
        return status, [{name: row[name] for name in row if name != "seconds"} for row in csv.DictReader(file)]


def test_runs_on_ray_equal_local_runs(zygote: Zygote, tmp_path: Path) -> None:
    words = ["--vary=model.fail=false,true", "--vary=estimator=NeumannRBP,CGRBP", "--jobs=2"]
    found, expected = (
        swept(zygote, tmp_path / name, *words, *on) for name, on in {"ray": ["--on=ray"], "alone": []}.items()
    )
    assert found == expected
    assert (found[0], [row["state"] for row in found[1]]) == (1, ["finished"] * 2 + ["failed"] * 2)


def test_a_search_on_ray_prunes_like_a_local_one(zygote: Zygote, tmp_path: Path) -> None:
    pytest.importorskip("optuna")
    words = [*SEARCH, "--jobs=1"]
    found, expected = (
        swept(zygote, tmp_path / name, *words, *on) for name, on in {"ray": ["--on=ray"], "alone": []}.items()
    )
    assert found == expected
    assert "pruned" in {row["state"] for row in found[1]}
