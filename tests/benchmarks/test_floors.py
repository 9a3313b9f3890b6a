"""The floors count and time what they say."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import floors
from benchmarks.counts import CountOperators, counted
from benchmarks.peers.methods import ours
from benchmarks.peers.networks import tanh
from rbp_lightning import BPTT, NeumannRBP, Picard, UserError
from tests.markdown import numbers, row_of

PEERS = """case,target,method,tol,error,ratio,failure
"tanh, radius 0.38",0.001,Picard + RBP by hand,0.002,9.6e-04,1.0,
"tanh, radius 0.38",0.001,"Implicit, the default",0.001,9.8e-04,1.1,
"tanh, radius 0.38",0.001,"xitorch, Anderson",0.002,9.6e-04,9.0,
"tanh, radius 0.38",1e-09,Picard + RBP by hand,,,,error 1e-07 at best
"tanh, radius 0.38",1e-09,"Implicit, the default",1e-10,9.6e-10,1.0,
"""


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")
@pytest.mark.parametrize(("estimator", "products"), [(NeumannRBP(4, Picard(7, 0.0)), 4 + 1), (BPTT(Picard(7, 0.0)), 7)])
def test_applications_and_products_are_counted(estimator: Any, products: int) -> None:
    method = ours(lambda solver, tol, radius: estimator)
    found = counted(tanh(0.4)(torch.float32), lambda case: method(case, 0.0, 0.0))
    assert (found.applications, found.products) == (7, products)


def test_operators_are_counted() -> None:
    with CountOperators() as count:
        torch.ones(2) + 1
    assert count.count == 2


def test_the_table_of_floors_is_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "peers.csv").write_text(PEERS)
    floors.floors(["tanh, radius 0.38", "tanh, radius 0.93"], tmp_path / "peers.csv", repeats=2, out=tmp_path)
    with (tmp_path / "floors.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["target"] for row in rows] == ["0.001", "0.001"]
    assert all(0 < float(row["alone"]) < float(row["default"]) for row in rows)
    assert row_of(capsys.readouterr().out, "tanh, radius 0.38", "0.001")


def test_a_missed_goal_is_bold() -> None:
    counts = {f"{kind} {one}": 9 for kind in ("applications", "products") for one in floors.METHODS}
    row = {"case": "tanh, radius 0.99", "target": 1e-5, "by hand": 1.0, **counts}
    missed, met = (floors.table([row | {"default": seconds, "alone": seconds - 0.002}] * 2) for seconds in (0.31, 0.29))
    name = "tanh, radius 0.99"
    assert "**" in row_of(missed, name)[1]
    assert "**" not in row_of(met, name)[1]
    assert [numbers(cell)[0] for cell in row_of(missed, name)[1:6]] == [0.30, 0.31, 0.31, 2.0, 1000.0]


def test_floors_without_the_comparison(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--peers=.*is no file"):
        floors.floors(peers=tmp_path / "peers.csv")
    (tmp_path / "peers.csv").write_text(PEERS)
    with pytest.raises(UserError, match="none of these cases"):
        floors.floors(["tanh, radius 0.93"], tmp_path / "peers.csv")
