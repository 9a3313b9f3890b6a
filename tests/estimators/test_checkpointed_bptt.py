"""CheckpointedBPTT gives the gradient of BPTT with less memory, in at most twice the steps."""

import gc
import math
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from benchmarks.memory import solve_peak
from rbp_lightning import (
    BPTT,
    Anderson,
    CheckpointedBPTT,
    Damped,
    FixedPoint,
    GradientEstimator,
    Picard,
    UserError,
    ignoring,
)
from rbp_lightning.estimators.replay import Replay
from tests.cells import Cell, cells, loss_of, tanh_cell
from tests.zoo import FAILURES, Problem

CPU = torch.device("cpu")
STATE = 64 * 256 * 4
"""Bytes of one state of the measured cell; each taped step saves one."""


def solve(estimator: GradientEstimator, cell: Cell) -> tuple[FixedPoint, list[Tensor]]:
    with ignoring():
        fixed_point = estimator(cell.update, cell.start, batch_dims=cell.batch_dims)
        return fixed_point, list(torch.autograd.grad(loss_of(fixed_point.state), cell.tensors))


@settings(max_examples=25, deadline=None)
@given(cell=cells(), steps=st.integers(1, 60), tol=st.sampled_from([0.0, 1e-3, 1e-9]))
def test_states_and_gradients_equal_those_of_bptt_exactly(cell: Cell, steps: int, tol: float) -> None:
    (one, gradients), (other, expected) = (solve(kind(Picard(steps, tol)), cell) for kind in (CheckpointedBPTT, BPTT))
    assert all(map(torch.equal, gradients, expected))
    assert one.steps == other.steps
    assert torch.equal(one.residual, other.residual)
    assert (one.adjoint is None) == (other.adjoint is None)
    if one.adjoint is not None:
        assert torch.equal(one.adjoint.error_estimate, other.adjoint.error_estimate)


@pytest.mark.parametrize("problem", FAILURES, ids=lambda problem: problem.name)
@pytest.mark.parametrize("tol", [0.0, 1e-6])
def test_failing_samples_are_frozen_as_by_bptt(problem: Problem, tol: float) -> None:
    drive = torch.full_like(problem.start, 0.1).requires_grad_()
    good = torch.tensor([[True], [False], [True]])  # the second sample fails

    def found(kind: type[BPTT]) -> tuple[FixedPoint, Tensor]:
        with ignoring():
            fixed_point = kind(Picard(40, tol))(
                lambda h: torch.where(good, 0.5 * h, problem.update(h)) + drive, problem.start, batch_dims=1
            )
            return fixed_point, torch.autograd.grad(fixed_point.state[[0, 2]].sum(), drive)[0]

    (one, gradient), (other, expected) = found(CheckpointedBPTT), found(BPTT)
    assert torch.equal(one.state, other.state)
    assert torch.equal(one.sample_status, other.sample_status)
    torch.testing.assert_close(gradient, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("steps", [1, 2, 10, 100])
def test_the_update_is_applied_at_most_twice_per_step(steps: int) -> None:
    cell, calls = tanh_cell(0), []

    def update(h: Tensor) -> Tensor:
        calls.append(h)
        return cell.update(h)

    state = CheckpointedBPTT(Picard(steps, 0.0))(update, cell.start, batch_dims=1).state
    assert len(calls) == steps
    loss_of(state).backward()
    assert steps <= len(calls) <= 2 * steps - 1  # the first step stays on the tape


def test_memory_grows_with_the_square_root_of_the_steps() -> None:
    counts = (10, 40, 160)
    with ignoring():
        peaks = {count: solve_peak(CheckpointedBPTT(Picard(count, 0.0)), CPU) / STATE for count in counts}
        fixed = solve_peak(CheckpointedBPTT(Picard(2, 0.0)), CPU) / STATE
    for count, peak in peaks.items():
        # As many checkpoints as steps in the longest segment, which is evaluated again.
        assert peak - fixed <= 2 * math.sqrt(2 * count) + 5
    assert peaks[160] - peaks[40] < 2.3 * (peaks[40] - peaks[10])


def test_memory_depends_on_the_steps_taken_not_on_max_steps() -> None:
    """The number of steps is not known in advance."""
    with ignoring():
        few, many = (solve_peak(CheckpointedBPTT(Picard(max_steps, 0.1)), CPU) for max_steps in (200, 20_000))
    assert few == many


def live_replays() -> list[Replay]:
    return [one for one in gc.get_objects() if type(one) is Replay]


def test_recomputed_segments_are_freed_with_the_tape() -> None:
    gc.disable()  # reference counting alone must free them
    others = live_replays()  # of other tests
    try:
        cell = tanh_cell(0)
        state = CheckpointedBPTT(Picard(20, 0.0))(cell.update, cell.start, batch_dims=1).state
        replays = [weakref.ref(one) for one in live_replays() if not any(one is other for other in others)]
        assert replays
        loss_of(state).backward()
        del state
        assert not [one for one in replays if one() is not None]
    finally:
        gc.enable()


def test_recomputation_draws_the_same_random_numbers() -> None:
    cell = tanh_cell(0)

    def found(kind: type[BPTT]) -> list[Tensor]:
        torch.manual_seed(3)
        cell_with_noise = Cell(
            lambda h: cell.update(nn.functional.dropout(h, 0.3)), cell.start, cell.tensors, batch_dims=1
        )
        gradients = solve(kind(Picard(20, 0.0)), cell_with_noise)[1]
        return [*gradients, torch.rand(3)]

    assert all(map(torch.equal, found(CheckpointedBPTT), found(BPTT)))


def test_an_update_may_differentiate() -> None:
    """Like the steps of an inner training, which take a differentiable gradient of the loss."""
    rate = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    target = torch.randn(5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)

    def update(weight: Tensor) -> Tensor:
        weight = weight if weight.requires_grad else weight.requires_grad_()
        loss = (weight.sin() - target).square().sum() + weight.square().sum()
        return weight - rate * torch.autograd.grad(loss, weight, create_graph=True)[0]

    def found(kind: type[BPTT]) -> Tensor:
        with torch.enable_grad():
            state = kind(Picard(30, 0.0))(update, torch.full((5,), 0.3, dtype=torch.float64)).state
            return torch.autograd.grad(state.sum(), rate)[0]

    assert torch.equal(found(CheckpointedBPTT), found(BPTT))


def test_second_derivatives_equal_those_of_bptt() -> None:
    cell = tanh_cell(0, size=3)

    def found(kind: type[BPTT]) -> Tensor:
        state = kind(Picard(12, 0.0))(cell.update, cell.start, batch_dims=1).state
        (first,) = torch.autograd.grad(loss_of(state), cell.tensors[0], create_graph=True)
        return torch.autograd.grad(first.square().sum(), cell.tensors[0])[0]

    torch.testing.assert_close(found(CheckpointedBPTT), found(BPTT), rtol=1e-12, atol=0)


def test_recomputation_uses_the_autocast_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, 4), torch.randn(3, 4)

    def found(kind: type[BPTT]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            state = kind(Picard(10, 0.0))(
                lambda h: torch.tanh(0.5 * layer(h) + inputs), torch.zeros(3, 4), batch_dims=1
            ).state
        return torch.autograd.grad(state.float().sum(), layer.weight)[0]

    assert torch.equal(found(CheckpointedBPTT), found(BPTT))


def test_a_parameter_changed_before_the_backward_pass_is_an_error() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    state = CheckpointedBPTT(Picard(20, 0.0))(lambda h: weight * h + 1, torch.zeros(2)).state
    with torch.no_grad():
        weight.add_(0.1)
    with pytest.raises((UserError, RuntimeError), match=r"do not change its parameters|modified by an inplace"):
        state.sum().backward()


def test_an_update_that_behaves_differently_when_recomputed_is_an_error() -> None:
    weight, calls = torch.tensor(0.5, requires_grad=True), []

    def update(h: Tensor) -> Tensor:
        calls.append(h)
        return weight * h + 1 if len(calls) <= 20 else (weight * h).sin() + 1

    state = CheckpointedBPTT(Picard(20, 0.0))(update, torch.zeros(2)).state
    with pytest.raises(UserError, match="did something else"):
        state.sum().backward()


def test_an_inplace_operation_on_a_saved_tensor_is_an_error() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    state = CheckpointedBPTT(Picard(20, 0.0))(lambda h: (weight * h + 0.1).exp().mul_(0.3), torch.zeros(2)).state
    with pytest.raises((UserError, RuntimeError), match=r"in place|inplace"):
        state.sum().backward()


@pytest.mark.parametrize("solver", [Damped(Picard()), Anderson()])
def test_solvers_other_than_picard_are_refused(solver: Any) -> None:
    with pytest.raises(UserError, match=r"use Picard"):
        CheckpointedBPTT(solver)
