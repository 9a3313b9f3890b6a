"""Second derivatives through implicit gradients of other packages, as docs/compare.md reports them."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from benchmarks.peers.derivatives import LOSSES, TO_ORDER_2, case_of, derivative_ratios, derivatives, exact, verdict
from benchmarks.peers.methods import BY_HAND, OURS, Method
from benchmarks.peers.peers import torchdeq, torchopt, xitorch
from benchmarks.peers.silva import SILVA, silva
from tests.markdown import rows_of

UNROLLED = BY_HAND["unrolled by hand"]

# torchopt uses names of functorch that PyTorch deprecates.
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:torchopt"),
    pytest.mark.filterwarnings("ignore:We've integrated functorch:FutureWarning"),
    pytest.mark.filterwarnings(r"ignore:`torch\.jit\.script` is deprecated:DeprecationWarning"),
]


def ratios(method: Method) -> list[float]:
    """Ratios of a method's second derivatives to the exact ones, for all losses; checks the first derivatives."""
    found = [derivative_ratios(method, loss, 0.8, 0.5) for loss in LOSSES.values()]
    assert [first for first, _ in found] == pytest.approx([1.0] * len(LOSSES), abs=1e-6)
    return [second for _, second in found]


@given(st.floats(0.3, 0.9), st.floats(0.05, 0.5), st.sampled_from(list(LOSSES)))
@settings(max_examples=20, deadline=None)
def test_the_closed_form_equals_the_unrolled_derivatives(state: float, drive: float, name: str) -> None:
    loss = LOSSES[name]
    (weight,) = case_of(state, drive).parameters
    assume(abs(float(weight.detach())) * (1 - state**2) < 0.9)  # otherwise the tape is long
    assume(min(map(abs, exact(loss, state, drive))) > 1e-3)  # otherwise the ratios are undefined
    assert derivative_ratios(UNROLLED, loss, state, drive) == pytest.approx((1.0, 1.0), abs=1e-6)


@pytest.mark.parametrize("name", [name for name in OURS if name != "BPTT"])
def test_this_project_refuses_second_derivatives_with_order_1(name: str) -> None:
    for loss in LOSSES.values():
        with pytest.raises(NotImplementedError, match="create_graph"):
            derivative_ratios(OURS[name], loss, 0.8, 0.5)


@pytest.mark.parametrize("name", TO_ORDER_2)
def test_this_project_is_right_with_order_2(name: str) -> None:
    assert ratios(TO_ORDER_2[name]) == pytest.approx([1, 1, 1], abs=1e-6)


@pytest.mark.parametrize("solver", ["fixed_point_iter", "anderson"])
def test_torchdeq_is_wrong(solver: str) -> None:
    pytest.importorskip("torchdeq")
    assert ratios(torchdeq(solver)) == pytest.approx([0.906, 1.392, 1.036], abs=1e-3)


def test_torchopt_is_wrong() -> None:
    pytest.importorskip("torchopt")
    assert ratios(torchopt) == pytest.approx([-0.138, -0.748, 1.439], abs=1e-3)


def test_xitorch_is_right() -> None:
    pytest.importorskip("xitorch")
    assert ratios(xitorch) == pytest.approx([1, 1, 1], abs=1e-5)


@pytest.mark.parametrize("name", [name for name in SILVA if "phantom" not in name and "JFB" not in name])
def test_silva_raises_or_omits_the_implicit_part(name: str) -> None:
    pytest.importorskip("silva_networks")
    found = [verdict(SILVA[name], loss, 0.8, 0.5) for loss in LOSSES.values()]
    assert found == ["RuntimeError", "RuntimeError", "1.386"]


@pytest.mark.parametrize("gradient", ["phantom", "unrolled"])
def test_silva_is_right_with_taped_steps(gradient: str) -> None:
    pytest.importorskip("silva_networks")
    assert ratios(silva("picard", gradient)) == pytest.approx([1, 1, 1], abs=1e-6)


def test_the_table_of_second_derivatives(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    derivatives(tmp_path)
    names, *rows = rows_of(capsys.readouterr().out)
    assert names[1:] == list(LOSSES)
    found = {name: row for name, *row in rows}
    assert found["RBP"] == ["NotImplementedError"] * len(LOSSES)
    assert [float(ratio) for ratio in found["RBP, order=2"]] == [1.0] * len(LOSSES)


def test_the_closed_form_for_a_loss_of_the_weight_only() -> None:
    first, second = exact(lambda state, weight: torch.log(weight), 0.8, 0.5)
    weight = (math.atanh(0.8) - 0.5) / 0.8
    assert (first, second) == pytest.approx((1 / weight, -1 / weight**2))
