"""Back-propagation through time with checkpoints: the gradient of BPTT, by less memory and twice the steps."""

import gc
import math
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
"""Bytes of a state of the cell whose memory is measured, of which a step saves one."""


def solved(estimator: GradientEstimator, cell: Cell) -> tuple[FixedPoint, list[Tensor]]:
    with ignoring():
        fixed_point = estimator(cell.update, cell.start, batch_dims=cell.batch_dims)
        return fixed_point, list(torch.autograd.grad(loss_of(fixed_point.state), cell.tensors))


@settings(max_examples=25, deadline=None)
@given(cell=cells(), steps=st.integers(1, 60), tol=st.sampled_from([0.0, 1e-3, 1e-9]))
def test_it_is_bptt_bit_for_bit(cell: Cell, steps: int, tol: float) -> None:
    (one, gradients), (other, expected) = (solved(kind(Picard(steps, tol)), cell) for kind in (CheckpointedBPTT, BPTT))
    assert all(map(torch.equal, gradients, expected))
    assert one.steps == other.steps
    assert torch.equal(one.residual, other.residual)
    assert (one.adjoint is None) == (other.adjoint is None)
    if one.adjoint is not None:
        assert torch.equal(one.adjoint.error_estimate, other.adjoint.error_estimate)


@pytest.mark.parametrize("problem", FAILURES, ids=lambda problem: problem.name)
@pytest.mark.parametrize("tol", [0.0, 1e-6])
def test_samples_that_fail_are_frozen_as_by_bptt(problem: Problem, tol: float) -> None:
    drive = torch.full_like(problem.start, 0.1).requires_grad_()
    good = torch.tensor([[True], [False], [True]])  # one sample fails beside two that do not

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
def test_the_update_is_applied_twice_a_step(steps: int) -> None:
    cell, calls = tanh_cell(0), []

    def update(h: Tensor) -> Tensor:
        calls.append(h)
        return cell.update(h)

    state = CheckpointedBPTT(Picard(steps, 0.0))(update, cell.start, batch_dims=1).state
    assert len(calls) == steps
    loss_of(state).backward()
    assert steps <= len(calls) <= 2 * steps - 1  # the first step stays on the tape


def test_memory_grows_with_the_square_root_of_the_steps() -> None:
    counts = (20, 80, 320)
    with ignoring():
        peaks = {count: solve_peak(CheckpointedBPTT(Picard(count, 0.0)), CPU) / STATE for count in counts}
        fixed = solve_peak(CheckpointedBPTT(Picard(2, 0.0)), CPU) / STATE
    for count, peak in peaks.items():
        # As many states that are kept as steps in the longest segment, which is run again.
        assert peak - fixed <= 2 * math.sqrt(2 * count) + 5
    assert peaks[320] - peaks[80] < 2.3 * (peaks[80] - peaks[20])
    assert peaks[320] < 320 / 5


def test_the_memory_of_a_solve_that_converges_early_is_that_of_its_steps() -> None:
    """How many there are turns out as it runs."""
    with ignoring():
        few, many = (solve_peak(CheckpointedBPTT(Picard(most, 1e-2)), CPU) for most in (200, 20_000))
    assert few == many


def test_nothing_that_was_made_again_outlives_the_tape() -> None:
    gc.collect()
    gc.disable()  # reference counting alone has to do
    try:
        cell = tanh_cell(0)
        state = CheckpointedBPTT(Picard(20, 0.0))(cell.update, cell.start, batch_dims=1).state
        assert any(type(one) is Replay for one in gc.get_objects())
        loss_of(state).backward()
        del state
        assert not any(type(one) is Replay for one in gc.get_objects())
    finally:
        gc.enable()


def test_random_numbers_are_drawn_as_they_were() -> None:
    cell = tanh_cell(0)

    def found(kind: type[BPTT]) -> list[Tensor]:
        torch.manual_seed(3)
        cell_with_noise = Cell(
            lambda h: cell.update(nn.functional.dropout(h, 0.3)), cell.start, cell.tensors, batch_dims=1
        )
        gradients = solved(kind(Picard(20, 0.0)), cell_with_noise)[1]
        return [*gradients, torch.rand(3)]

    assert all(map(torch.equal, found(CheckpointedBPTT), found(BPTT)))


def test_an_update_that_differentiates() -> None:
    """As the steps of a training are: a gradient within each, which has a derivative."""
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


def test_second_derivatives_are_those_of_bptt() -> None:
    cell = tanh_cell(0, size=3)

    def found(kind: type[BPTT]) -> Tensor:
        state = kind(Picard(12, 0.0))(cell.update, cell.start, batch_dims=1).state
        (first,) = torch.autograd.grad(loss_of(state), cell.tensors[0], create_graph=True)
        return torch.autograd.grad(first.square().sum(), cell.tensors[0])[0]

    torch.testing.assert_close(found(CheckpointedBPTT), found(BPTT), rtol=1e-12, atol=0)


def test_the_autocast_of_the_forward_pass() -> None:
    torch.manual_seed(0)
    layer, inputs = nn.Linear(4, 4), torch.randn(3, 4)

    def found(kind: type[BPTT]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            state = kind(Picard(10, 0.0))(
                lambda h: torch.tanh(0.5 * layer(h) + inputs), torch.zeros(3, 4), batch_dims=1
            ).state
        return torch.autograd.grad(state.float().sum(), layer.weight)[0]

    assert torch.equal(found(CheckpointedBPTT), found(BPTT))


def test_a_parameter_that_was_stepped_before_the_backward_pass_is_an_error() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    state = CheckpointedBPTT(Picard(20, 0.0))(lambda h: weight * h + 1, torch.zeros(2)).state
    with torch.no_grad():
        weight.add_(0.1)
    with pytest.raises((UserError, RuntimeError), match=r"leave its parameters|modified by an inplace"):
        state.sum().backward()


def test_an_update_that_has_become_another_is_an_error() -> None:
    weight, calls = torch.tensor(0.5, requires_grad=True), []

    def update(h: Tensor) -> Tensor:
        calls.append(h)
        return weight * h + 1 if len(calls) <= 20 else (weight * h).sin() + 1

    state = CheckpointedBPTT(Picard(20, 0.0))(update, torch.zeros(2)).state
    with pytest.raises(UserError, match="did something else"):
        state.sum().backward()


def test_what_is_changed_in_place_is_an_error_as_on_any_tape() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    state = CheckpointedBPTT(Picard(20, 0.0))(lambda h: (weight * h + 0.1).exp().mul_(0.3), torch.zeros(2)).state
    with pytest.raises((UserError, RuntimeError), match=r"in place|inplace"):
        state.sum().backward()


@pytest.mark.parametrize("solver", [Damped(Picard()), Anderson()])
def test_a_solver_whose_steps_are_not_plain_is_refused(solver: Any) -> None:
    with pytest.raises(UserError, match=r"use Picard"):
        CheckpointedBPTT(solver)
