"""Forward solvers as solvers of the adjoint equation."""

import pytest
import torch

from benchmarks.host_syncs import CountSyncs
from rbp_lightning import (
    CGRBP,
    Anderson,
    Auto,
    Broyden,
    Damped,
    ExactAdjoint,
    FixedPointAdjoint,
    FixedPointSolver,
    GradientEstimator,
    Implicit,
    JacobianOperator,
    NewtonKrylov,
    Picard,
    ReducedRankExtrapolation,
    Status,
    UserError,
)
from rbp_lightning.linear import GMRES
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


FORWARD = ReducedRankExtrapolation(200, 1e-10)
BEYOND_CONTRACTIONS = {
    "Anderson": Implicit(Anderson(400, 1e-9), FORWARD),
    "ReducedRankExtrapolation": Implicit(ReducedRankExtrapolation(400, 1e-9), FORWARD),
    "Broyden": Implicit(Broyden(400, 1e-9), FORWARD),
    "GMRES": Implicit(GMRES(50, 1e-9), FORWARD),
    "CGRBP": CGRBP(50, 1e-9, solver=FORWARD),
    "ExactAdjoint": ExactAdjoint(solver=FORWARD),
    "ExactAdjoint by GMRES": ExactAdjoint(0, solver=FORWARD),
}


@pytest.mark.parametrize("estimator", BEYOND_CONTRACTIONS.values(), ids=list(BEYOND_CONTRACTIONS))
@pytest.mark.parametrize("matrix", [rotation(1.3), -2.3 * torch.eye(6).double()], ids=["rotation", "slope"])
def test_the_adjoint_of_an_expanding_map_is_found(estimator: GradientEstimator, matrix: torch.Tensor) -> None:
    inputs = draw(2, 6, seed=0).requires_grad_()
    fixed_point = estimator(lambda h: h @ matrix + inputs, torch.zeros(2, 6).double(), batch_dims=1)
    fixed_point.state.sum().backward()
    exact = solve_dense(torch.eye(6).double() - matrix, torch.ones(2, 6).double())
    assert fixed_point.adjoint.converged
    torch.testing.assert_close(inputs.grad, exact, rtol=1e-6, atol=1e-7)


def test_a_single_step_that_is_not_finite_is_not_a_failure() -> None:
    class Leaps(FixedPointSolver):
        """Takes plain steps, except that the fifth iterate is NaN."""

        def init(self, vector, batch_dims):
            return vector, 0

        def step(self, vector, image, memory):
            kept, count = memory
            if count == 4:
                return [leaf * float("nan") for leaf in image], (kept, 5)
            return (kept if count == 5 else image), (image, count + 1)

    matrix, gradient = symmetric(0.5), draw(3, 6, seed=1)
    operator = JacobianOperator.at(lambda h: h @ matrix, torch.zeros_like(gradient), 1)
    solution = FixedPointAdjoint(Leaps(200, 1e-10, check_every=1)).solve(operator, [gradient])
    assert solution.status is Status.CONVERGED
    exact = solve_dense(torch.eye(6).double() - matrix, gradient)
    torch.testing.assert_close(solution.vector[0], exact, rtol=1e-8, atol=1e-9)


@pytest.mark.parametrize("solver", SOLVERS, ids=lambda kind: kind.__name__)
def test_a_sample_with_nan_costs_few_reads_from_the_device(solver: type[FixedPointSolver]) -> None:
    matrix, gradient = symmetric(0.97, 12), draw(3, 12, seed=1)
    operator = JacobianOperator.at(lambda h: h @ matrix, torch.zeros_like(gradient), 1)
    gradient[1] = float("nan")
    with CountSyncs() as reads:
        solution = FixedPointAdjoint(solver(5000, 1e-8)).solve(operator, [gradient])
    assert not solution.converged
    assert reads.count <= solution.steps // 10 + 6  # two more for the failure, and two for each decision of Auto


def products_of_a_slow_adjoint(dtype: torch.dtype, cycle: int) -> int:
    """Products to 1e-5 with a Jacobian of spectral radius 0.999, on 20 rows of 50 units."""
    values = torch.linspace(-0.999, 0.999, 50, dtype=torch.float64)
    basis = torch.linalg.qr(draw(50, 50, seed=0))[0]
    weight, slopes = basis * values @ basis.T, 1 - 0.01 * draw(20, 50, seed=1).square()
    weight, slopes, gradient = (one.to(dtype) for one in (weight, slopes, draw(1, 20, 50, seed=2)))
    operator = JacobianOperator.at(lambda h: slopes * (h @ weight), torch.zeros_like(gradient), 1)
    solution = FixedPointAdjoint(ReducedRankExtrapolation(2000, 1e-5, cycle=cycle)).solve(operator, [gradient])
    assert solution.status is Status.CONVERGED
    return solution.products


def test_extrapolation_in_float32_takes_about_as_many_products_as_in_float64() -> None:
    """Changes as differences of iterates, which are much larger, would have too few correct digits in float32."""
    single, double = (products_of_a_slow_adjoint(dtype, cycle=8) for dtype in (torch.float32, torch.float64))
    assert single <= 1.2 * double


def test_a_long_cycle_saves_products_though_its_gram_matrix_is_singular() -> None:
    assert products_of_a_slow_adjoint(torch.float64, cycle=32) <= products_of_a_slow_adjoint(torch.float64, cycle=8)


def test_implicit_solves_its_adjoint_by_auto_by_default() -> None:
    solver = Implicit().linear_solver
    assert isinstance(solver, FixedPointAdjoint)
    assert isinstance(solver.solver, Auto)
    assert isinstance(Implicit(Damped(Anderson())).linear_solver, FixedPointAdjoint)
    for wrong in ("Anderson", NewtonKrylov()):
        with pytest.raises(UserError, match="FixedPointAdjoint: solver="):
            FixedPointAdjoint(wrong)
