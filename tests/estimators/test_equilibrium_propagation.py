"""Equilibrium propagation on an energy, against its definition and the dense adjoint."""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rbp_lightning import (
    Anderson,
    EquilibriumPropagation,
    Failure,
    GradientEstimator,
    JacobianOperator,
    NewtonKrylov,
    NudgedAdjoint,
    Picard,
    UserError,
)
from tests.cells import Cell, dense, loss_of, relative_error, settle, tanh_cell
from tests.recorded_failures import recorded_failures
from tests.zoo import draw, symmetric

EXACT = Picard(3000, tol=1e-14)


def energy_cell(seed: int, radius: float = 0.6, batch: int = 3, size: int = 5) -> Cell:
    """Gradient steps of size 1/2 on E = |h|^2 / 2 - s W s / 2 - x s, s = tanh h (Scellier and Bengio, equation 1)."""
    weight, inputs = symmetric(radius, size, seed), 0.5 * draw(batch, size, seed=seed + 1)
    upper = weight.clone().requires_grad_()
    inputs.requires_grad_()

    def update(h: Tensor) -> Tensor:
        rates, both = torch.tanh(h), 0.5 * (upper + upper.T)
        return 0.5 * h + 0.5 * (1 - rates**2) * (rates @ both + inputs)

    return Cell(update, torch.zeros(batch, size, dtype=torch.float64), [upper, inputs], 1)


def gradients(estimator: GradientEstimator, cell: Cell) -> list[Tensor]:
    state = estimator(cell.update, cell.start, batch_dims=cell.batch_dims).state
    return list(torch.autograd.grad(loss_of(state), cell.tensors))


@pytest.mark.parametrize("centred", [True, False])
@settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 10**6), beta=st.floats(1e-3, 0.3))
def test_the_adjoint_is_the_difference_of_two_nudged_fixed_points(centred: bool, seed: int, beta: float) -> None:
    cell = energy_cell(seed)
    state = settle(cell, 120)
    gradient = draw(*state.shape, seed=seed + 2)
    nudge = gradient / gradient.abs().amax(dim=1, keepdim=True)
    ends = []
    for side in (beta, -beta if centred else 0.0):
        ends.append(state)
        for _ in range(120):
            ends[-1] = (cell.update(ends[-1]) + side * nudge).detach()
    exact = (ends[0] - ends[1]) / (2 * beta if centred else beta) * gradient.abs().amax(dim=1, keepdim=True)
    operator = JacobianOperator.at(cell.update, state, 1)
    with recorded_failures() as reported:
        found = NudgedAdjoint(beta, centred, Picard(120, tol=0)).solve(operator, [gradient])
    torch.testing.assert_close(found.vector[0], exact, rtol=1e-8, atol=1e-9)
    torch.testing.assert_close(found.residual, operator.adjoint_residual([gradient], found.vector))
    assert not reported


@pytest.mark.parametrize(("centred", "order"), [(True, 2), (False, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_the_error_is_of_first_or_second_order_in_beta(centred: bool, order: int, seed: int) -> None:
    cell = energy_cell(seed)
    exact = dense(cell).gradients
    with recorded_failures() as reported:
        errors = [
            relative_error(gradients(EquilibriumPropagation(beta, centred, EXACT, EXACT), cell), exact)
            for beta in (4e-2, 2e-2, 1e-2, 1e-3)
        ]
    for before, after in pairwise(errors):
        ratio = 10.0 if after is errors[-1] else 2.0
        assert math.log(before / after, ratio) == pytest.approx(order, abs=0.15)
    assert set(reported) == {Failure.ADJOINT}  # no error is below the tolerance of 1e-14


@pytest.mark.parametrize("batch_dims", [0, 1])
@pytest.mark.parametrize("solver", [None, Picard(200, 1e-3), Anderson(200, 1e-3)], ids=["Auto", "Picard", "Anderson"])
def test_the_default_nudge_meets_the_default_tolerance(solver: Picard | None, batch_dims: int) -> None:
    """In float32 as well."""
    cell = energy_cell(0, radius=0.9)
    cell.batch_dims = batch_dims
    exact = dense(cell).gradients
    with recorded_failures() as reported:
        assert relative_error(gradients(EquilibriumPropagation(nudged_solver=solver), cell), exact) < 3e-3
        narrow = energy_cell(0, radius=0.9)
        tensors = [leaf.detach().float().requires_grad_() for leaf in narrow.tensors]

        def update(h: Tensor) -> Tensor:
            rates = torch.tanh(h)
            return 0.5 * h + 0.5 * (1 - rates**2) * (rates @ (0.5 * (tensors[0] + tensors[0].T)) + tensors[1])

        found = gradients(EquilibriumPropagation(nudged_solver=solver), Cell(update, cell.start.float(), tensors, 1))
        assert relative_error([one.double() for one in found], exact) < 3e-3
    assert not reported


def test_the_backward_pass_applies_the_update_without_gradients_only() -> None:
    cell, calls = energy_cell(0), []

    def update(h: Tensor) -> Tensor:
        calls.append(torch.is_grad_enabled())
        return cell.update(h)

    estimator = EquilibriumPropagation(nudged_solver=Picard(7, tol=0), solver=Picard(50, tol=0))
    fixed_point = estimator(update, cell.start, batch_dims=1)
    with recorded_failures():
        calls.clear()
        fixed_point.state.sum().backward()
    assert calls == [False] * 14
    assert fixed_point.adjoint.steps == 7


@settings(max_examples=8, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_an_asymmetric_jacobian_is_reported(seed: int) -> None:
    cell = tanh_cell(seed, norm=0.7)
    estimator = EquilibriumPropagation(1e-4, nudged_solver=EXACT, solver=EXACT)
    with recorded_failures() as reported:
        found = gradients(estimator, cell)
    assert Failure.NOT_POSITIVE_DEFINITE in reported
    assert relative_error(found, dense(cell).gradients) > 1e-4


def test_a_state_of_several_leaves_gets_the_dense_gradient() -> None:
    """The energy couples a leaf of vectors with a leaf of scalars."""
    strength = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)

    def energy(state: dict[str, Tensor]) -> Tensor:
        coupling = strength * state["a"].tanh().sum(dim=1) * state["b"].tanh()
        return (
            0.5 * state["a"].square().sum(dim=1) + 0.5 * state["b"].square() - coupling - state["a"].sum(dim=1)
        ).sum()

    def update(state: dict[str, Tensor]) -> dict[str, Tensor]:
        with torch.enable_grad():
            own = {name: leaf if leaf.requires_grad else leaf.detach().requires_grad_() for name, leaf in state.items()}
            slopes = torch.autograd.grad(energy(own), list(own.values()), create_graph=True)
        return {name: leaf - 0.5 * slope for (name, leaf), slope in zip(own.items(), slopes, strict=True)}

    start = {"a": torch.zeros(2, 3, dtype=torch.float64), "b": torch.zeros(2, dtype=torch.float64)}
    cell = Cell(update, start, [strength], 1)
    estimator = EquilibriumPropagation(1e-4, nudged_solver=Picard(500, 1e-7), solver=EXACT)
    for cell.batch_dims in (0, 1):
        assert relative_error(gradients(estimator, cell), dense(cell).gradients) < 1e-6


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: EquilibriumPropagation(0.0), r"NudgedAdjoint: beta=0.0 must be a number in \(0, "),
        (lambda: EquilibriumPropagation(centred=1), "NudgedAdjoint: centred=1 .*true or false"),
        (lambda: EquilibriumPropagation(nudged_solver=NewtonKrylov()), "would linearise"),
    ],
)
def test_invalid_arguments_are_refused(make, message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()
