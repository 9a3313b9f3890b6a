"""JFB and the phantom gradient equal their definitions, and their bias is not reported as a failure."""

import copy
import pickle
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from rbp_lightning import (
    JFB,
    TBPTT,
    ConvergenceError,
    FailurePolicy,
    GradientEstimator,
    JacobianOperator,
    LinearSolution,
    NeumannRBP,
    PhantomGradient,
    Picard,
    SolveObserver,
    UserError,
    ignoring,
    observing,
)
from rbp_lightning.linear import DampedNeumannSeries
from tests.cells import Cell, cells, dense, loss_of, relative_error, settle, tanh_cell

FIXED = Picard(max_steps=400, tol=0)


def gradients(estimator: GradientEstimator, cell: Cell) -> list[Tensor]:
    with ignoring():
        state = estimator(cell.update, cell.start, batch_dims=cell.batch_dims).state
        return list(torch.autograd.grad(loss_of(state), cell.tensors))


@settings(max_examples=8, deadline=None)
@given(cell=cells())
def test_jfb_equals_the_neumann_series_of_one_term(cell: Cell) -> None:
    for one, other in zip(gradients(JFB(FIXED), cell), gradients(NeumannRBP(0, FIXED), cell), strict=True):
        assert torch.equal(one, other)


@settings(max_examples=8, deadline=None)
@given(cell=cells(), steps=st.integers(1, 12))
def test_the_undamped_phantom_gradient_equals_neumann_rbp_and_tbptt(cell: Cell, steps: int) -> None:
    found = gradients(PhantomGradient(steps, 1.0, FIXED), cell)
    for one, other in zip(found, gradients(NeumannRBP(steps - 1, FIXED), cell), strict=True):
        assert torch.equal(one, other)
    assert relative_error(found, gradients(TBPTT(steps, FIXED), cell)) < 1e-12


@settings(max_examples=8, deadline=None)
@given(cell=cells(), steps=st.integers(1, 12), damping=st.floats(0.05, 1.0))
def test_the_phantom_gradient_equals_bptt_through_damped_steps(cell: Cell, steps: int, damping: float) -> None:
    state = tree_map(lambda leaf: leaf.detach(), settle(cell, 400))
    for _ in range(steps):
        state = tree_map(lambda h, f: (1 - damping) * h + damping * f, state, cell.update(state))
    unrolled = torch.autograd.grad(loss_of(state), cell.tensors)
    assert relative_error(gradients(PhantomGradient(steps, damping, FIXED), cell), list(unrolled)) < 1e-11


@settings(max_examples=8, deadline=None)
@given(cell=cells(), steps=st.integers(1, 40), damping=st.floats(0.05, 1.0))
def test_the_damped_series_equals_the_dense_sum(cell: Cell, steps: int, damping: float) -> None:
    exact, state = dense(cell), settle(cell, 400)
    identity = torch.eye(len(exact.jacobian), dtype=torch.float64)
    damped, term, total = (1 - damping) * identity + damping * exact.jacobian.T, exact.gradient, 0.0
    for _ in range(steps):
        total, term = total + damping * term, damped @ term
    leaves = tree_flatten(state)[0]
    parts = exact.gradient.split([leaf.numel() for leaf in leaves])
    gradient = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
    solution = DampedNeumannSeries(steps, damping).solve(JacobianOperator.at(cell.update, state, 0), gradient)
    found = torch.cat([leaf.flatten() for leaf in solution.vector])
    torch.testing.assert_close(found, total, rtol=1e-10, atol=1e-12)
    assert solution.products == steps - 1


@pytest.mark.parametrize("damping", [0.3, 1.0])
def test_the_error_estimate_of_a_damped_series_is_exact_for_one_mode(damping: float) -> None:
    """Its remainder is a geometric series."""
    weight = torch.tensor(0.8, dtype=torch.float64, requires_grad=True)
    fixed_point = PhantomGradient(6, damping, FIXED)(lambda h: weight * h + 1, torch.zeros((), dtype=torch.float64))
    fixed_point.state.backward()
    error = 1 - float(weight.grad) / 25
    assert float(fixed_point.adjoint.error_estimate) == pytest.approx(error, rel=1e-6)


@pytest.mark.parametrize("estimator", [JFB(), PhantomGradient(2)])
def test_the_bias_of_the_method_is_recorded_but_not_a_failure(estimator: GradientEstimator) -> None:
    """A warning would be an error here."""
    seen: list[LinearSolution] = []

    class Watch(SolveObserver):
        def on_adjoint(self, solution: LinearSolution) -> None:
            seen.append(solution)

    cell = tanh_cell(0, norm=0.9)
    with FailurePolicy(adjoint="raise", truncation_tol=0.0), observing(Watch):
        fixed_point = estimator(cell.update, cell.start, batch_dims=1)
        loss_of(fixed_point.state).backward()
        with pytest.raises(ConvergenceError):  # the truncation error of a series is a failure
            loss_of(NeumannRBP(1)(cell.update, cell.start, batch_dims=1).state).backward()
    assert not fixed_point.adjoint.converged
    assert float(fixed_point.adjoint.error_estimate.max()) > 0.1
    assert seen[0].error_estimate is fixed_point.adjoint.error_estimate


def test_jfb_takes_no_products() -> None:
    cell = tanh_cell(0)
    fixed_point = JFB()(cell.update, cell.start, batch_dims=1)
    loss_of(fixed_point.state).backward()
    assert fixed_point.adjoint.products == 0


def test_nan_in_the_gradient_stays_in_its_sample_and_is_reported() -> None:
    drive = torch.ones(2, 2, requires_grad=True)
    state = JFB()(lambda h: 0.5 * h.flip(1) + drive, torch.zeros(2, 2), batch_dims=1).state
    with pytest.warns(match="JFB"):
        state.backward(torch.tensor([[float("nan"), 1.0], [1.0, 1.0]]))
    assert drive.grad[1].tolist() == [1.0, 1.0]


def test_jfb_can_be_copied_and_pickled() -> None:
    cell = tanh_cell(0)
    for other in (copy.deepcopy(JFB()), pickle.loads(pickle.dumps(JFB()))):
        assert repr(other) == repr(JFB())
        assert all(map(torch.equal, gradients(other, cell), gradients(JFB(), cell)))


@pytest.mark.parametrize("arguments", [{"steps": 0}, {"damping": 0.0}, {"damping": 1.5}])
def test_invalid_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UserError, match=next(iter(arguments))):
        PhantomGradient(**arguments)
