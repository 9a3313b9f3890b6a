"""Forward solvers as solvers of the adjoint equation."""

import pytest
import torch

from rbp_lightning import (
    Anderson,
    Auto,
    Broyden,
    Damped,
    FixedPointAdjoint,
    FixedPointSolver,
    Implicit,
    JacobianOperator,
    NewtonKrylov,
    Picard,
    ReducedRankExtrapolation,
    UserError,
)
from tests.zoo import draw, rotation, solve_dense, symmetric

SOLVERS = [Picard, Anderson, ReducedRankExtrapolation, Broyden, Auto]


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda kind: kind.__name__)
def test_the_adjoint_equals_the_dense_solution(solver: type[FixedPointSolver]) -> None:
    matrix, gradient = symmetric(0.97, 12), draw(3, 12, seed=1)
    operator = JacobianOperator.at(lambda h: h @ matrix, torch.zeros_like(gradient), 1)
    solution = FixedPointAdjoint(solver(5000, 1e-10)).solve(operator, [gradient])
    exact = solve_dense(torch.eye(12).double() - matrix, gradient)
    assert solution.converged
    torch.testing.assert_close(solution.vector[0], exact, rtol=1e-6, atol=1e-7)
    assert solution.products == operator.products


@pytest.mark.parametrize("solver", [Anderson, ReducedRankExtrapolation, Broyden], ids=lambda kind: kind.__name__)
def test_accelerated_solvers_find_the_adjoint_of_an_expanding_map(solver: type[FixedPointSolver]) -> None:
    inputs = draw(2, 6, seed=0).requires_grad_()
    matrix = rotation(1.3)
    estimator = Implicit(solver(400, 1e-9), ReducedRankExtrapolation(200, 1e-10))
    estimator(lambda h: h @ matrix + inputs, torch.zeros(2, 6).double(), batch_dims=1).state.sum().backward()
    exact = solve_dense(torch.eye(6).double() - matrix, torch.ones(2, 6).double())
    torch.testing.assert_close(inputs.grad, exact, rtol=1e-6, atol=1e-7)


def test_implicit_solves_its_adjoint_by_auto_by_default() -> None:
    solver = Implicit().linear_solver
    assert isinstance(solver, FixedPointAdjoint)
    assert isinstance(solver.solver, Auto)
    assert isinstance(Implicit(Damped(Anderson())).linear_solver, FixedPointAdjoint)
    for wrong in ("Anderson", NewtonKrylov()):
        with pytest.raises(UserError, match="FixedPointAdjoint: solver="):
            FixedPointAdjoint(wrong)
