"""Steps replayed from a CUDA graph equal steps taken one by one."""

import warnings
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import Implicit, Picard, UserError
from rbp_lightning.pytree import Vector
from rbp_lightning.reporting import Place
from rbp_lightning.steps_ahead import RECORDERS, Replay, Step, StepsAhead
from tests.cells import loss_of, tanh_cell


def one_by_one(prepare: Callable[[], Step], vector: Vector, count: int) -> Replay:
    """A recorder for the CPU, which has no graphs: its replay takes the steps one by one."""
    step = prepare()

    def replay(start: Vector) -> list[Vector]:
        found = [start]
        for _ in range(count):
            found.append(step(found[-1]))
        return found[1:]

    return replay


@pytest.fixture
def cpu_recorder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(RECORDERS, "cpu", one_by_one)


@settings(deadline=None)
@given(st.integers(2, 5), st.lists(st.integers(1, 40), min_size=1, max_size=4))
def test_replayed_steps_equal_single_steps_also_after_a_new_start(count: int, lengths: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch, torch.no_grad():
        patch.setitem(RECORDERS, "cpu", one_by_one)
        ahead = StepsAhead(lambda vector: [vector[0].cos(), vector[1] / 2], count, Place("here.py", 1))
        for number, length in enumerate(lengths):
            expected: Vector = [torch.full((), float(number), dtype=torch.float64), torch.ones(2)]
            vector = [leaf.clone() for leaf in expected]
            for _ in range(length):
                vector, expected = ahead(vector), [expected[0].cos(), expected[1] / 2]
                torch.testing.assert_close(list(vector), list(expected), rtol=0, atol=0)
    assert ahead.replays >= sum((length - 1 - 2 * count) // count for length in lengths if length > 2 * count + 1)


@pytest.mark.usefixtures("cpu_recorder")
def test_a_taped_step_is_evaluated_even_if_it_was_replayed_ahead() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    ahead, vector = StepsAhead(lambda vector: [weight * vector[0]], 4, Place("here.py", 1)), [torch.ones(2)]
    with torch.no_grad():
        for _ in range(11):
            vector = ahead(vector)
    assert ahead.replays == 1
    (image,) = ahead(vector)
    image.sum().backward()
    torch.testing.assert_close(weight.grad, vector[0].sum())


@pytest.mark.usefixtures("cpu_recorder")
@pytest.mark.parametrize("tol", [0.0, 1e-9])
def test_a_solve_and_its_gradient_do_not_depend_on_graph_steps(tol: float) -> None:
    found = []
    for graph_steps in (0, 4):
        weight, drive = (tensor.detach().requires_grad_() for tensor in tanh_cell(0).tensors)
        solver = Picard(200, tol, graph_steps=graph_steps)
        fixed_point = Implicit(Picard(100, tol, graph_steps=graph_steps), solver)(
            lambda h, weight=weight, drive=drive: torch.tanh(h @ weight + drive), torch.zeros_like(drive), 1
        )
        loss_of(fixed_point.state).backward()
        adjoint = fixed_point.adjoint
        found.append((fixed_point.steps, fixed_point.status, adjoint.steps, adjoint.products, fixed_point.residual))
        found[-1] += fixed_point.state, weight.grad, drive.grad
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other


def test_a_failed_capture_warns_once_per_line_and_falls_back_to_single_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    tries = []

    def record(prepare: Callable[[], Step], vector: Vector, count: int) -> Replay:
        tries.append(count)
        raise RuntimeError("operation not permitted when stream is capturing\nand more")

    monkeypatch.setitem(RECORDERS, "cpu", record)

    def solve() -> torch.Tensor:
        return Implicit(solver=Picard(60, tol=0, graph_steps=3))(torch.cos, torch.zeros(2, dtype=torch.float64)).state

    with torch.no_grad(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        states = [solve() for _ in range(3)]
    assert len(tries) == 1
    assert [warning.filename for warning in caught] == [__file__]
    assert "not permitted" in str(caught[0].message)
    for state in states:
        torch.testing.assert_close(state, torch.full((2,), 0.7390851332151607, dtype=torch.float64))


def test_graphs_of_one_step_are_refused() -> None:
    with pytest.raises(UserError, match="graph_steps=1"):
        Picard(graph_steps=1)
