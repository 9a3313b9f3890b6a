"""The comparison with other packages."""

import csv
import math
from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
import torch
from PIL import Image

from benchmarks.peers.cases import ALL_CASES, CaseName, make_case
from benchmarks.peers.compare import chosen, peers
from benchmarks.peers.measure import Calibrated, Setting, calibrate, exact_gradient, gradient, loosest, radius_of
from benchmarks.peers.methods import BY_HAND, OURS, terms
from benchmarks.peers.networks import Case, tanh, training
from rbp_lightning import UserError
from tests.markdown import rows_of

Make = Callable[[torch.dtype], Case]

TANH = tanh(0.4)


@cache
def solved_exactly(make: Make) -> torch.Tensor:
    """The exact gradient of a case in float64."""
    return exact_gradient(make(torch.float64))


def test_the_table_and_all_ratios_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    peers(["tanh, radius 0.38"], errors=[1e-2], repeats=2, out=tmp_path)
    with (tmp_path / "peers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for name in (*BY_HAND, *OURS):
        mine = [row for row in rows if row["method"] == name]
        assert [row["target"] for row in mine] == ["0.01"] * 2
        assert all(float(row["error"]) <= float(row["target"]) and float(row["ratio"]) > 0 for row in mine)
    assert {float(row["ratio"]) for row in rows if row["method"] == "Picard + RBP by hand"} == {1.0}
    table = (tmp_path / "peers.md").read_text()
    assert table in capsys.readouterr().out
    assert "NeumannRBP" in [row[0] for row in rows_of(table)]
    Image.open(tmp_path / "peers.png").verify()


def test_methods_are_compared_by_name() -> None:
    assert list(chosen(["RBP"])) == ["Picard + RBP by hand", "RBP"]
    assert set(OURS) < set(chosen([]))
    with pytest.raises(UserError, match=r"--methods.*RPB.*RBP"):
        chosen(["RPB"])


@pytest.mark.usefixtures("no_data")
def test_a_case_without_its_data_is_skipped(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="No case could be compared"):
        peers(["graph network on Cora"], out=tmp_path / "out")
    assert "graph network on Cora: left out." in capsys.readouterr().err


def test_a_single_repeat_is_refused() -> None:
    with pytest.raises(UserError, match="--repeats=1"):
        peers(repeats=1)


@pytest.mark.parametrize(("name", "radius"), [("tanh, radius 0.38", 0.38), ("tanh, radius 0.93", 0.93)])
def test_the_cases_have_the_spectral_radius_of_their_name(name: CaseName, radius: float) -> None:
    assert radius_of(make_case(name, torch.float64)) == pytest.approx(radius, abs=0.005)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.data] if "Cora" in name else []) for name in ALL_CASES]
)
def test_a_case_is_the_same_in_every_precision(name: CaseName, request: pytest.FixtureRequest) -> None:
    if "Cora" in name:
        request.getfixturevalue("cora")
    steps = []
    for dtype in (torch.float32, torch.float64):
        case = make_case(name, dtype)
        state = case.start
        for _ in range(3):
            state = case.step(state, *case.prepare(*case.parameters))
        assert state.dtype is dtype
        steps.append(state.detach().double())
    torch.testing.assert_close(*steps, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("make", [TANH, training], ids=["tanh", "training"])
@pytest.mark.parametrize("name", [*BY_HAND, *OURS])
def test_every_method_converges_to_the_exact_gradient(make: Make, name: str) -> None:
    case, exact = make(torch.float64), solved_exactly(make)
    found = gradient(case, {**BY_HAND, **OURS}[name](case, 1e-9, 0.9))
    assert float((found - exact).norm() / exact.norm()) < 1e-6


def test_a_method_that_fails_or_is_too_inaccurate_is_reported() -> None:
    def broken(case, tol, radius):
        raise ValueError("no such thing")

    case = TANH(torch.float32)
    assert calibrate(case, torch.ones(1), "broken", broken, 0.4, [1e-3]) == ["fails: ValueError: no such thing"]
    assert loosest(lambda tol: 3 + tol, 1e-3) == "error 3e+00 at best"
    assert loosest(lambda tol: max(tol, 2e-6), 1e-6) == "error 2e-06 at best"
    asked = []
    assert loosest(lambda tol: asked.append(tol) or 0.5, 1e-3) == "error 5e-01 at best"
    assert len(asked) < 14  # the tighter tolerances are the slow ones


def test_the_loosest_tolerance_that_meets_an_error_is_found() -> None:
    found = loosest(lambda tol: 5 * tol, 1e-5)
    assert isinstance(found, Setting)
    assert found.error == 5 * found.tol
    assert 0.95e-5 < found.error <= 1e-5


def test_a_method_is_calibrated_for_several_errors() -> None:
    case, exact = TANH(torch.float32), solved_exactly(TANH)
    found = calibrate(case, exact, "by hand", BY_HAND["Picard + RBP by hand"], 0.4, [1e-3, 1e-5])
    assert all(isinstance(one, Calibrated) for one in found)
    assert all(one.error <= target for one, target in zip(found, [1e-3, 1e-5], strict=True))
    assert found[1].tol < found[0].tol


def test_the_number_of_terms_that_meets_an_error() -> None:
    assert terms(1e-3, 0.5) == 10
    assert terms(0.5, 0.1) == 1
    assert math.isclose(0.93 ** terms(1e-4, 0.93), 1e-4, rel_tol=0.1)
