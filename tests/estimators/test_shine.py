"""SHINE uses the inverse Jacobian of Broyden's method: against a textbook version and the dense adjoint."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rbp_lightning import JFB, SHINE, Auto, Broyden, Picard, UserError, WarmStart, ignoring
from tests.cells import Cell, cells, dense, loss_of, relative_error, tanh_cell
from tests.zoo import affine, rotation, symmetric


def broyden_matrix(update: Callable[[Tensor], Tensor], state: Tensor, steps: int) -> Tensor:
    """The approximate inverse of one sample after some steps of the textbook's Broyden method."""
    inverse = -torch.eye(len(state), dtype=state.dtype)
    change = update(state) - state
    for _ in range(steps - 1):
        step = -inverse @ change
        state = state + step
        before, change = change, update(state) - state
        product = inverse @ (change - before)
        inverse = inverse + torch.outer(step - product, step @ inverse) / (step @ product)
    return inverse


def adjoint(estimator: SHINE, update: Callable[[Tensor], Tensor], start: Tensor, gradient: Tensor) -> Tensor:
    """The adjoint z, which is the gradient of an input added to the state."""
    added = torch.zeros_like(start, requires_grad=True)
    with ignoring():
        state = estimator(lambda h: update(h) + added, start, batch_dims=1).state
        return torch.autograd.grad(state, added, gradient)[0]


@pytest.mark.parametrize("matrix", [symmetric(0.5), rotation(0.7)], ids=["symmetric", "rotation"])
@pytest.mark.parametrize("steps", [2, 5, 8])
def test_the_adjoint_uses_the_transpose_of_broyden_s_inverse(matrix: Tensor, steps: int) -> None:
    problem = affine("", matrix)
    gradient = torch.randn(3, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # The taped step does not update the inverse.
    found = adjoint(SHINE(0, fallback=1e6, solver=Broyden(steps + 1, 0.0)), problem.update, problem.start, gradient)
    for sample in range(3):

        def update(h: Tensor, sample: int = sample) -> Tensor:
            return problem.update(h.expand(3, -1))[sample]

        inverse = broyden_matrix(update, problem.start[sample], steps)
        torch.testing.assert_close(found[sample], -inverse.T @ gradient[sample], rtol=1e-9, atol=1e-9)


def test_the_adjoint_of_one_unknown_is_exact() -> None:
    weights = torch.tensor([[0.9], [-1.5], [0.2]], dtype=torch.float64)
    found = adjoint(SHINE(0), lambda h: weights * h + 1, torch.zeros_like(weights), torch.ones_like(weights))
    torch.testing.assert_close(found, 1 / (1 - weights))


@settings(max_examples=8, deadline=None)
@given(cell=cells(), fallback=st.sampled_from([1.0, 1e6]))
def test_the_refined_adjoint_is_exact(cell: Cell, fallback: float) -> None:
    estimator = SHINE(500, 1e-12, fallback, solver=Broyden(500, 1e-14, memory=40))
    with ignoring():
        fixed_point = estimator(cell.update, cell.start, batch_dims=cell.batch_dims)
        found = torch.autograd.grad(loss_of(fixed_point.state), cell.tensors)
    assert relative_error(list(found), dense(cell).gradients) < 1e-9
    assert fixed_point.adjoint.converged


def test_the_shared_inverse_saves_products() -> None:
    """On average over problems, compared with a solve that keeps one correction only."""
    taken = {True: 0, False: 0}
    for seed in range(8):
        cell = tanh_cell(seed, norm=0.95, batch=2, size=6)
        for full_memory in taken:
            # In a memory of one, each correction replaces the last one.
            solver = Broyden(200, 1e-10, memory=60 if full_memory else 1)
            with ignoring():
                fixed_point = SHINE(200, 1e-6, check_every=1, solver=solver)(cell.update, cell.start, batch_dims=1)
                torch.autograd.grad(loss_of(fixed_point.state), cell.tensors)
            assert fixed_point.adjoint.converged
            taken[full_memory] += fixed_point.adjoint.products
    assert taken[True] < 0.8 * taken[False]


def test_an_adjoint_that_is_too_large_falls_back_to_one_step() -> None:
    """Per sample: with fallback 2 the sample of spectral radius 0.9 falls back, that of 0.2 does not."""
    weights = torch.tensor([[0.9], [0.2]], dtype=torch.float64)

    def found(fallback: float) -> list[float]:
        start, ones = torch.zeros_like(weights), torch.ones_like(weights)
        return adjoint(SHINE(0, fallback=fallback), lambda h: weights * h + 1, start, ones).flatten().tolist()

    assert found(2.0) == pytest.approx([1.0, 1.25])
    assert found(20.0) == pytest.approx([10.0, 1.25])


def test_a_frozen_sample_does_not_change_the_gradients_of_others() -> None:
    drive = torch.ones(3, 1, requires_grad=True)
    nan_input = torch.tensor([[0.0], [float("nan")], [0.0]])
    with ignoring():
        state = SHINE(0)(lambda h: 0.5 * h + drive + nan_input, torch.zeros(3, 1), batch_dims=1).state
        (found,) = torch.autograd.grad(state[[0, 2]].sum(), drive)
    assert found[[0, 2]].flatten().tolist() == pytest.approx([2.0, 2.0])


def test_a_solve_of_one_or_two_steps_gives_the_one_step_gradient() -> None:
    cell = tanh_cell(0)
    with ignoring():
        for solver in (Broyden(1), Broyden(2, 0.0)):
            found, one_step = (
                torch.autograd.grad(loss_of(estimator(cell.update, cell.start, batch_dims=1).state), cell.tensors)
                for estimator in (SHINE(0, solver=solver), JFB(solver))
            )
            assert all(map(torch.equal, found, one_step))


def test_a_warm_start_refines_the_last_adjoint() -> None:
    cell, warm_start = tanh_cell(0, norm=0.9), WarmStart()
    estimator, products = SHINE(100, 1e-8, check_every=1, solver=Broyden(200, 1e-12)), []
    with ignoring():
        for _ in range(2):
            fixed_point = estimator(cell.update, cell.start, batch_dims=1, warm_start=warm_start)
            found = torch.autograd.grad(loss_of(fixed_point.state), cell.tensors)
            assert relative_error(list(found), dense(cell).gradients) < 1e-6
            products.append(fixed_point.adjoint.products)
    assert products[1] <= 2 < products[0]


@pytest.mark.parametrize("solver", [Picard(), Auto()])
def test_a_solver_without_an_inverse_is_refused(solver: Picard) -> None:
    with pytest.raises(UserError, match=f"SHINE: solver={type(solver).__name__} has no inverse"):
        SHINE(solver=solver)
