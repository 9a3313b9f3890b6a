"""The comparison with another checkout."""

import csv
import runpy
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
import torch

from benchmarks.against import compare
from benchmarks.against.compare import against
from benchmarks.asked_process import AskedProcess
from benchmarks.peers.cora import cora
from rbp_lightning import UserError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def slower(tmp_path: Path) -> Path:
    """A checkout with slower estimators."""
    shutil.copytree(ROOT / "rbp_lightning", tmp_path / "slower" / "rbp_lightning")
    with (tmp_path / "slower" / "rbp_lightning" / "api.py").open("a") as file:
        file.write(
            "\n_call = GradientEstimator.__call__\n"
            "GradientEstimator.__call__ = lambda *args, **options: (sum(range(2**21)), _call(*args, **options))[1]\n"
        )
    return tmp_path / "slower"


@pytest.mark.slow
def test_a_slower_checkout_is_measured_as_slower(
    slower: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(compare, "SECONDS", 0.0)  # one call per measurement
    against(slower, ["tanh, radius 0.38"], repeats=2, out=tmp_path)
    with (tmp_path / "against.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["estimator"] for row in rows[::2]] == ["RBP", "NeumannRBP", "CGRBP", "BPTT"]
    assert all(float(row["ratio"]) < 0.7 for row in rows)
    assert {row[f"more {one}"] for row in rows for one in ("applications", "products", "operators")} == {"0"}
    assert "| RBP, against slower |" in capsys.readouterr().out


@pytest.mark.data
@pytest.mark.usefixtures("cora")
def test_a_worker_gets_the_graph_of_a_case(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, file = "graph network on Cora", str(tmp_path / "graph.pt")
    torch.save(asdict(cora(name)), file)
    monkeypatch.setattr(sys, "argv", ["worker.py", str(ROOT)])
    monkeypatch.setattr(sys, "path", list(sys.path))
    worker = runpy.run_path(str(ROOT / "benchmarks" / "against" / "worker.py"))
    estimator = {"name": "RBP", "max_steps": 100, "tol": 1e-3, "terms": 20}
    assert worker["seconds"]({"name": name, "graph": file}, estimator, 1) > 0


def test_a_folder_that_is_not_a_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no rbp_lightning: give the folder"):
        against(tmp_path)


def test_an_error_in_a_process_is_reported(capfd: pytest.CaptureFixture[str]) -> None:
    process = AskedProcess([sys.executable, "-c", "1 / 0"], "A checkout")
    with process, pytest.raises(UserError, match="A checkout failed; its message is above"):
        process.ask(ask="seconds")
    assert "ZeroDivisionError" in capfd.readouterr().err
