"""The benchmark of the errors and costs of gradients."""

import csv
from pathlib import Path

import pytest
import torch

from benchmarks import gradients
from benchmarks.peers.cases import make_case
from rbp_lightning import Picard
from tests.markdown import numbers, row_of

pytestmark = pytest.mark.usefixtures("fewer_objects")

CASE = "tanh, radius 0.38"


def test_the_table_of_gradients(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    chosen = ("JFB", "NeumannRBP(5)", "BPTT", "CheckpointedBPTT")
    monkeypatch.setattr(gradients, "ESTIMATORS", {name: gradients.ESTIMATORS[name] for name in chosen})
    gradients.gradients([CASE], tol=1e-5, out=tmp_path)
    printed = capsys.readouterr().out
    with (tmp_path / "gradients.csv").open(newline="") as file:
        rows = {row["estimator"]: row for row in csv.DictReader(file)}
    assert tuple(rows) == chosen
    errors = {name: float(row["error"]) for name, row in rows.items()}
    assert errors["JFB"] > 0.1 > errors["NeumannRBP(5)"] > 1e-4 > errors["BPTT"] == errors["CheckpointedBPTT"]
    assert [int(rows[name]["products"]) for name in chosen[:2]] == [1, 6]
    case = make_case(CASE)
    solve = gradients.gradient_by(case, gradients.BPTT(Picard(100, 1e-5)))[1]
    assert int(rows["BPTT"]["forward"]) == solve.steps
    # CheckpointedBPTT keeps the tape of the first step.
    assert [int(rows[name]["again"]) for name in chosen] == [0, 0, 0, solve.steps - 1]
    assert float(rows["BPTT"]["states"]) > solve.steps
    shown = row_of(printed, "JFB")
    assert float(shown[1]) == pytest.approx(errors["JFB"], rel=0.5)  # one digit
    assert numbers(shown[2])[:2] == [int(rows["JFB"]["forward"]), 1]
    assert (tmp_path / "gradients.md").read_text() in printed


def test_the_error_is_relative_to_the_exact_gradient() -> None:
    case = make_case(CASE, torch.float64)
    exact = gradients.gradient_by(case, gradients.ESTIMATORS["ExactAdjoint()"](1e-13))[0]
    assert gradients.worth(case, gradients.ESTIMATORS["ExactAdjoint()"](1e-13), exact).error == 0.0
    assert gradients.worth(case, gradients.ESTIMATORS["JFB"](1e-13), 2 * exact).error > 0.5
