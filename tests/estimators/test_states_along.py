"""``states_at`` returns iterates of a solve, differentiable as the estimator does it."""

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    BPTT,
    TBPTT,
    Anderson,
    ExactAdjoint,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    Picard,
    SolveObserver,
    UserError,
    observing,
)
from tests.cells import loss_of, relative_error, tanh_cell

STEPS = [2, 5, 9]


def iterates(cell, count: int) -> list[Tensor]:
    states = [cell.start]
    for _ in range(count):
        states.append(cell.update(states[-1]))
    return states


@pytest.mark.parametrize("tol", [0.0, 1e-12])
@pytest.mark.parametrize("taped", [True, False])
@pytest.mark.parametrize(
    "make", [lambda s: BPTT(s), lambda s: TBPTT(2, s), lambda s: NeumannRBP(3, s), lambda s: ExactAdjoint(solver=s)]
)
def test_the_states_are_the_iterates(make, taped: bool, tol: float) -> None:
    cell = tanh_cell(0, norm=0.9)
    with torch.set_grad_enabled(taped):
        result = make(Picard(200 if tol else 40, tol))(cell.update, cell.start, batch_dims=1, states_at=STEPS)
        expected = iterates(cell, max(STEPS))
    for step, state in zip(STEPS, result.states, strict=True):
        torch.testing.assert_close(state, expected[step], rtol=1e-14, atol=1e-15)
        assert state.requires_grad == taped


@pytest.mark.parametrize("tol", [0.0, 1e-12])
def test_bptt_gives_each_state_the_gradient_of_its_steps(tol: float) -> None:
    cell = tanh_cell(1, norm=0.9)
    result = BPTT(Picard(200 if tol else 40, tol))(cell.update, cell.start, batch_dims=1, states_at=STEPS)
    expected = iterates(cell, max(STEPS))
    for step, state in zip(STEPS, result.states, strict=True):
        found, exact = (
            torch.autograd.grad(loss_of(one), cell.tensors, retain_graph=True) for one in (state, expected[step])
        )
        assert relative_error(list(found), list(exact)) < 1e-12


@pytest.mark.parametrize("order", [1, 2])
def test_bptt_reaches_the_initial_state_from_each_state(order: int) -> None:
    cell = tanh_cell(1, norm=0.9)
    start = torch.full_like(cell.start, 0.3).requires_grad_()
    result = BPTT(Picard(40, 0))(cell.update, start, batch_dims=1, states_at=[2], order=order)
    found, exact = (
        torch.autograd.grad(loss_of(one), start)[0] for one in (result.states[0], cell.update(cell.update(start)))
    )
    torch.testing.assert_close(found, exact)


@pytest.mark.parametrize(
    "estimator", [BPTT(Picard(40, 0)), TBPTT(3, Picard(40, 0)), ExactAdjoint(solver=Picard(40, 0))]
)
def test_vmap_gives_the_gradients_of_each_entry(estimator: GradientEstimator) -> None:
    def loss(weight: Tensor) -> Tensor:
        start = torch.zeros(2, dtype=torch.float64)
        return loss_of(estimator(lambda h: torch.tanh(weight * h + 1), start, states_at=[4]).states[0])

    weights = torch.tensor([0.5, 0.2], dtype=torch.float64)
    for transform in (torch.func.grad, torch.func.jacfwd):
        alone = torch.stack([torch.func.grad(loss)(weight) for weight in weights])
        torch.testing.assert_close(torch.func.vmap(transform(loss))(weights), alone)


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("make", [lambda s: BPTT(s), lambda s: TBPTT(3, s), lambda s: ExactAdjoint(solver=s)])
def test_the_states_are_the_iterates_of_a_solve_with_transient_growth(make, order: int) -> None:
    matrix = torch.tensor([[0.8, 20.0], [0.0, 0.8]], dtype=torch.float64, requires_grad=True)
    start, drive = torch.zeros(2, dtype=torch.float64), torch.tensor([0.0, 1.0], dtype=torch.float64)
    found = make(Picard(300, 1e-10))(lambda h: matrix @ h + drive, start, states_at=[3], order=order).states[0]
    h = start
    for _ in range(3):
        h = matrix @ h + drive
    torch.testing.assert_close(found, h)


def test_tbptt_gives_each_state_the_gradient_of_its_last_steps() -> None:
    cell = tanh_cell(1, norm=0.9)
    result = TBPTT(3, Picard(40, 0))(cell.update, cell.start, batch_dims=1, states_at=STEPS[1:])
    for step, state in zip(STEPS[1:], result.states, strict=True):
        h = iterates(cell, step - 3)[-1].detach()
        for _ in range(3):
            h = cell.update(h)
        found, exact = (torch.autograd.grad(loss_of(one), cell.tensors) for one in (state, h))
        assert relative_error(list(found), list(exact)) < 1e-12


def test_an_implicit_estimator_solves_the_adjoint_at_each_state() -> None:
    """As if the state were the fixed point, which is how fixed-point correction is defined."""
    cell = tanh_cell(1, norm=0.9)
    result = ExactAdjoint(solver=Picard(200, 1e-12))(cell.update, cell.start, batch_dims=1, states_at=STEPS)
    for step, state in zip(STEPS, result.states, strict=True):
        point = iterates(cell, step)[-1].detach().requires_grad_()
        image = cell.update(point)
        jacobian = torch.autograd.functional.jacobian(lambda h: cell.update(h).reshape(-1), point.detach())
        matrix = torch.eye(point.numel()).double() - jacobian.reshape(point.numel(), -1)
        (gradient,) = torch.autograd.grad(loss_of(point), point)
        adjoint = torch.linalg.solve(matrix.T, gradient.reshape(-1)).reshape(point.shape)
        exact = torch.autograd.grad(image, cell.tensors, adjoint)
        found = torch.autograd.grad(loss_of(state), cell.tensors)
        assert relative_error(list(found), list(exact)) < 1e-9


def test_steps_after_convergence_give_the_fixed_point() -> None:
    cell = tanh_cell(0, norm=0.2)
    result = Implicit()(cell.update, cell.start, batch_dims=1, states_at=[2, 90])
    assert result.steps < 90
    assert result.states[1] is result.state


def test_transforms_work_with_accelerated_solvers() -> None:
    cell = tanh_cell(0, norm=0.9)

    def loss(drive: Tensor) -> Tensor:
        result = ExactAdjoint(solver=Anderson(60, 1e-10))(
            lambda h: torch.tanh(h @ cell.tensors[0] + drive), cell.start, batch_dims=1, states_at=[4]
        )
        return loss_of(result.states[0])

    drive = cell.tensors[1].detach().requires_grad_()
    plain = torch.autograd.grad(loss(drive), drive)[0]
    torch.testing.assert_close(torch.func.grad(loss)(drive.detach()).detach(), plain, rtol=1e-9, atol=1e-12)


def test_tbptt_refuses_states_with_fewer_steps_than_it_tapes() -> None:
    cell = tanh_cell(0)
    with pytest.raises(UserError, match="states_at has 2"):
        TBPTT(4, Picard(40, 0))(cell.update, cell.start, batch_dims=1, states_at=[2])


def test_observers_see_one_solve() -> None:
    cell, seen = tanh_cell(0), []

    class Solves(SolveObserver):
        def on_solve_end(self, fixed_point, operator) -> None:
            seen.append(fixed_point.steps)

    with observing(Solves):
        Implicit()(cell.update, cell.start, batch_dims=1, states_at=STEPS)
    assert len(seen) == 1


@pytest.mark.parametrize("states_at", [3, [0], [1.5], "34"])
def test_invalid_steps_are_refused(states_at) -> None:
    with pytest.raises(UserError, match="states_at="):
        Implicit()(torch.cos, torch.zeros(2), states_at=states_at)
