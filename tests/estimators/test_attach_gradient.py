"""attach_gradient differentiates solutions that another solver found."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    ConvergenceWarning,
    Dense,
    ExactAdjoint,
    Implicit,
    NeumannRBP,
    Picard,
    UserError,
    attach_gradient,
)
from tests.cells import Cell, cells, dense, loss_of, relative_error, settle


@settings(max_examples=10, deadline=None)
@given(cell=cells())
def test_a_given_fixed_point_gets_the_dense_gradient(cell: Cell) -> None:
    solution = settle(cell)
    for estimator in (None, ExactAdjoint(), CGRBP(100, 1e-13)):
        result = attach_gradient(cell.update, solution, estimator, cell.batch_dims)
        error = relative_error(list(torch.autograd.grad(loss_of(result.state), cell.tensors)), dense(cell).gradients)
        assert error < (1e-9 if estimator is not None else 1e-3)
        assert result.converged


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6))
def test_a_minimum_found_by_scipy_gets_first_and_second_derivatives(seed: int) -> None:
    """A ridge regression, whose solution has a closed form; its gradient is not a contraction."""
    generator = torch.Generator().manual_seed(seed)
    features = torch.randn(12, 4, generator=generator, dtype=torch.float64)
    targets = torch.randn(12, generator=generator, dtype=torch.float64)
    penalty = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)

    def loss_gradient(weights: Tensor) -> Tensor:
        return features.T @ (features @ weights - targets) + penalty * weights

    def numpy_slope(weights: Any) -> Any:
        return loss_gradient(torch.from_numpy(weights)).detach().numpy()

    found = torch.from_numpy(optimize.root(numpy_slope, np.zeros(4), tol=1e-13).x)
    result = attach_gradient(loss_gradient, found, Implicit(Dense()), optimality=True, order=2)

    def derivatives(state: Tensor) -> list[float]:
        (first,) = torch.autograd.grad(state.square().sum(), penalty, create_graph=True)
        return [float(first.detach()), float(torch.autograd.grad(first, penalty)[0])]

    closed = torch.linalg.solve(features.T @ features + penalty * torch.eye(4), features.T @ targets)
    assert derivatives(result.state) == pytest.approx(derivatives(closed), rel=1e-6)  # SciPy's accuracy


def test_roots_of_an_expanding_function_have_forward_and_reverse_derivatives() -> None:
    def root(c: Tensor) -> Tensor:
        return attach_gradient(lambda h: 10 * (h**2 - c), c.detach().sqrt(), Implicit(Dense()), optimality=True).state

    c = torch.tensor([2.0, 9.0], dtype=torch.float64)
    torch.testing.assert_close(torch.func.jacfwd(root)(c), torch.diag(0.5 / c.sqrt()))
    torch.testing.assert_close(torch.func.jacrev(root)(c), torch.diag(0.5 / c.sqrt()))


@pytest.mark.parametrize("optimality", [False, True])
def test_the_function_is_applied_once(optimality: bool) -> None:
    calls, weight = [], torch.tensor(0.5, requires_grad=True)

    def function(h: Tensor) -> Tensor:
        calls.append(h)
        return h - weight * h - 1 if optimality else weight * h + 1

    result = attach_gradient(function, torch.tensor([2.0]), optimality=optimality)
    result.state.sum().backward()
    assert float(weight.grad) == pytest.approx(4.0, rel=1e-4)
    assert len(calls) == result.steps == 1


def test_a_state_that_is_not_a_solution_is_reported() -> None:
    weight = torch.tensor(0.5, requires_grad=True)
    with pytest.warns(ConvergenceWarning, match="did not converge") as caught:
        result = attach_gradient(lambda h: weight * h + 1, torch.tensor(1.9))
    assert caught[0].filename == __file__
    assert not result.converged
    assert float(result.residual) == pytest.approx(0.05 / 1.95, rel=1e-4)


def test_invalid_arguments_are_refused() -> None:
    with pytest.raises(UserError, match="estimator="):
        attach_gradient(torch.cos, torch.tensor(0.7391), BPTT())
    with pytest.raises(UserError, match="tol=0"):
        attach_gradient(torch.cos, torch.tensor(0.7391), Implicit(solver=Picard(tol=0)))
    with pytest.raises(UserError, match="another structure"):
        attach_gradient(lambda h: h["a"], {"a": torch.zeros(2)}, NeumannRBP(), optimality=True)
