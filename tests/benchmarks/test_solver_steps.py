"""The benchmark of the steps and times of solvers."""

import csv
from pathlib import Path

import pytest

from benchmarks import solver_steps
from benchmarks.peers import cases
from rbp_lightning import Picard
from tests.markdown import numbers, rows_of


def test_the_tables_of_solvers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    monkeypatch.setitem(solver_steps.FORWARD, "two steps", lambda tol: Picard(2, tol))
    solver_steps.solvers(["tanh, radius 0.38"], repeats=2, out=tmp_path)
    printed = capsys.readouterr().out
    with (tmp_path / "solvers.csv").open(newline="") as file:
        rows = {(row["equation"], row["solver"]): row for row in csv.DictReader(file)}
    assert len(rows) == len(solver_steps.FORWARD) + len(solver_steps.ADJOINT)
    plain = rows["forward", "Picard"]
    outcome = solver_steps.forward(cases.make_case("tanh, radius 0.38"), Picard(100, 1e-5))
    assert (int(plain["steps"]), plain["converged"], float(plain["ratio"])) == (outcome[0], "True", 1.0)
    shown = dict(rows_of(printed))
    assert numbers(shown["Picard"]) == [outcome[0], 1.0]
    for name in ("two steps", "ConjugateGradient"):  # W is not symmetric
        assert numbers(shown[name]) == []
        assert rows["forward" if name == "two steps" else "adjoint", name]["converged"] == "False"
