"""Krylov methods, against SciPy's, at convergence and at breakdowns."""

from collections.abc import Callable

import numpy
import pytest
import scipy.sparse.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rbp_lightning import (
    GMRES,
    BiCGSTAB,
    ConjugateGradient,
    Dense,
    Failure,
    JacobianOperator,
    LinearSolver,
    NormalCG,
    Status,
    UserError,
    ignoring,
)
from rbp_lightning.linear import AdaptiveNeumannSeries, Direct, gmres
from tests.recorded_failures import recorded_failures
from tests.zoo import draw, solve_dense, symmetric

BATCH, SIZE = 3, 30
EXACT = [GMRES(200, 1e-12, SIZE), BiCGSTAB(200, 1e-12), ConjugateGradient(200, 1e-12), NormalCG(400, 1e-12), Dense()]
EVERY_SOLVER = pytest.mark.parametrize("solver", EXACT, ids=lambda solver: type(solver).__name__)


def operator_of(matrix: Tensor, batch: int = BATCH) -> JacobianOperator:
    """The Jacobian of h <- M h, with one matrix for all samples or one for each."""
    matrix = matrix.expand(batch, -1, -1)
    state = torch.zeros(batch, matrix.shape[-1], dtype=matrix.dtype)
    return JacobianOperator.at(lambda h: (matrix @ h[..., None]).squeeze(-1), state, batch_dims=1)


def system(matrix: Tensor) -> numpy.ndarray:
    """I - J^T as a NumPy array."""
    return (torch.eye(len(matrix), dtype=matrix.dtype) - matrix.T).numpy()


def general(seed: int = 0, radius: float = 0.9, size: int = SIZE) -> Tensor:
    return radius * draw(size, size, seed=seed) / size**0.5


# --- against SciPy


@pytest.mark.parametrize(("steps", "restart"), [(1, 1), (7, 7), (20, 20), (12, 4), (20, 5)])
def test_gmres_equals_scipy_s(steps: int, restart: int) -> None:
    matrix, right = general(), draw(BATCH, SIZE, seed=1)
    solution = GMRES(steps, 0.0, restart).solve(operator_of(matrix), [right])
    for sample in range(BATCH):
        expected, _ = scipy.sparse.linalg.gmres(
            system(matrix), right[sample].numpy(), rtol=1e-300, restart=restart, maxiter=steps // restart
        )
        torch.testing.assert_close(solution.vector[0][sample], torch.from_numpy(expected), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("solver", "other", "matrix"),
    [
        (BiCGSTAB, scipy.sparse.linalg.bicgstab, general()),
        (ConjugateGradient, scipy.sparse.linalg.cg, symmetric(0.9, SIZE)),
    ],
    ids=["BiCGSTAB", "ConjugateGradient"],
)
def test_short_recurrences_equal_scipy_s(solver: type, other: Callable, matrix: Tensor) -> None:
    right = draw(BATCH, SIZE, seed=1)
    for steps in (1, 2, 9):
        with ignoring():
            solution = solver(steps, 0.0).solve(operator_of(matrix), [right])
        for sample in range(BATCH):
            expected, _ = other(system(matrix), right[sample].numpy(), rtol=1e-300, maxiter=steps)
            torch.testing.assert_close(solution.vector[0][sample], torch.from_numpy(expected), rtol=1e-8, atol=1e-10)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), restart=st.integers(1, 12), steps=st.integers(1, 12), radius=st.floats(0.05, 3.0))
def test_gmres_minimises_the_residual_over_its_krylov_space(seed: int, restart: int, steps: int, radius: float) -> None:
    matrix, right, start = general(seed, radius, 10), draw(2, 10, seed=seed + 1), draw(2, 10, seed=seed + 2)
    found = GMRES(steps, 0.0, restart).solve(operator_of(matrix, 2), [right], [start])
    dense = torch.eye(10, dtype=torch.float64) - matrix.T
    for sample in range(2):
        solution, left = start[sample], steps
        while left:
            taken = min(restart, left, 10)
            residual = right[sample] - dense @ solution
            space = [residual]
            for _ in range(taken - 1):
                space.append(dense @ space[-1] / space[-1].norm())
            basis = torch.linalg.qr(torch.stack(space, 1))[0]
            solution = solution + basis @ torch.linalg.lstsq(dense @ basis, residual[:, None]).solution[:, 0]
            left -= taken
        least = (right[sample] - dense @ solution).norm() / right[sample].norm()
        torch.testing.assert_close(found.residual[sample], least, rtol=1e-5, atol=1e-10)


def test_conjugate_gradients_need_far_fewer_products_than_the_normal_equations() -> None:
    basis = torch.linalg.qr(draw(200, 200, seed=0))[0]
    matrix = basis * (1 - torch.logspace(-4, 0, 200, dtype=torch.float64)) @ basis.T
    operator, right = operator_of(matrix, 1), [draw(1, 200, seed=1)]
    plain = ConjugateGradient(1000, 1e-4).solve(operator, right)
    normal = NormalCG(2 * plain.products, 1e-4).solve(operator, right)
    assert plain.converged
    assert plain.products < 400
    assert not normal.converged  # although it has four times the products


def test_gmres_needs_fewer_products_than_the_normal_equations() -> None:
    operator, right = operator_of(general()), [draw(BATCH, SIZE, seed=1)]
    assert 2 * GMRES().solve(operator, right).products < NormalCG(100).solve(operator, right).products


# --- convergence and breakdown


@EVERY_SOLVER
@pytest.mark.parametrize("eigenvalues", [1, 2, 4])
def test_as_many_steps_as_distinct_eigenvalues_give_the_solution(solver: LinearSolver, eigenvalues: int) -> None:
    """Further steps do no harm, although they would only amplify rounding."""
    basis = torch.linalg.qr(draw(SIZE, SIZE, seed=0))[0]
    values = torch.linspace(-0.5, 0.8, eigenvalues, dtype=torch.float64).repeat(SIZE)[:SIZE]
    matrix, right = basis * values @ basis.T, draw(BATCH, SIZE, seed=1)
    found = solver.solve(operator_of(matrix), [right]).vector[0]
    expected = solve_dense(torch.from_numpy(system(matrix)).expand(BATCH, -1, -1), right)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    if isinstance(solver, GMRES):
        assert float(GMRES(eigenvalues, 0.0).solve(operator_of(matrix), [right]).residual.max()) < 1e-12
        assert float(GMRES(SIZE, 0.0).solve(operator_of(matrix), [right]).residual.max()) < 1e-12


@EVERY_SOLVER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_state_of_one_element(solver: LinearSolver, dtype: torch.dtype) -> None:
    operator = operator_of(torch.full((1, 1), 0.75, dtype=dtype))
    torch.testing.assert_close(solver.solve(operator, [torch.ones(BATCH, 1, dtype=dtype)]).vector[0].mean().item(), 4.0)


@EVERY_SOLVER
def test_a_start_at_the_solution_is_returned(solver: LinearSolver) -> None:
    matrix, right = symmetric(0.9, SIZE), draw(BATCH, SIZE, seed=1)
    exact = solve_dense(torch.from_numpy(system(matrix)).expand(BATCH, -1, -1), right)
    solution = solver.solve(operator_of(matrix), [right], [exact])
    torch.testing.assert_close(solution.vector[0], exact, rtol=1e-12, atol=1e-12)
    assert solution.steps <= 5 or isinstance(solver, Dense)


@EVERY_SOLVER
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kind", ["inconsistent", "identity", "consistent"])
def test_singular_equations_are_reported_and_give_finite_results(
    solver: LinearSolver, dtype: torch.dtype, kind: str
) -> None:
    values = torch.linspace(-0.5, 0.8, SIZE, dtype=torch.float64)
    values[0] = 1
    basis = torch.linalg.qr(draw(SIZE, SIZE, seed=0))[0]
    matrix = torch.eye(SIZE, dtype=torch.float64) if kind == "identity" else basis * values @ basis.T
    right = draw(BATCH, SIZE, seed=1)
    right[2] = 0  # this sample has a solution
    if kind == "consistent":
        right = right @ torch.from_numpy(system(matrix))
    with ignoring():
        solution = solver.solve(operator_of(matrix.to(dtype)), [right.to(dtype)])
    assert bool(solution.vector[0].isfinite().all())
    assert bool(solution.residual.isfinite().all())
    assert float(solution.residual[2]) == 0
    if kind != "consistent":
        assert not solution.converged
        assert solution.status is Status.MAX_STEPS
    elif not isinstance(solver, Dense):
        assert float(solution.residual.max()) < 1e-4


def test_bicgstab_restarts_after_a_breakdown() -> None:
    """For a rotation by 90 degrees the first step length is undefined; GMRES needs two steps."""
    turn = torch.tensor([[1.0, -1.0], [1.0, 1.0]], dtype=torch.float64)  # I - J^T turns by 90 degrees
    mild = torch.tensor([[0.5, -1.0], [1.0, 0.5]], dtype=torch.float64)
    operator, right = operator_of(torch.stack([turn, mild, turn])), draw(BATCH, 2, seed=0)
    solution = BiCGSTAB(50, 1e-12).solve(operator, [right])
    assert solution.residual.isfinite().all()
    assert float(solution.residual[1]) < 1e-12
    assert not solution.converged
    assert GMRES(50, 1e-12).solve(operator, [right]).converged


# --- samples


def test_converged_samples_stop_and_do_not_depend_on_others() -> None:
    easy, hard = symmetric(0.3, SIZE), symmetric(0.99, SIZE, seed=3)
    right = draw(BATCH, SIZE, seed=1)
    both = torch.stack([easy, hard, easy])
    for solver in (GMRES(200, 1e-6, 40, 1), BiCGSTAB(100, 1e-6, 1), ConjugateGradient(100, 1e-6, 1)):
        together = solver.solve(operator_of(both), [right])
        alone = solver.solve(operator_of(easy[None], 1), [right[:1]])
        assert together.converged
        assert together.steps > 2 * alone.steps
        torch.testing.assert_close(together.vector[0][0], alone.vector[0][0], rtol=1e-12, atol=1e-13)


@EVERY_SOLVER
def test_nan_in_a_jacobian_stays_in_its_sample_and_costs_no_steps(solver: LinearSolver) -> None:
    matrix = symmetric(0.5, SIZE).repeat(BATCH, 1, 1)
    matrix[1, 0, 0] = float("nan")
    right = draw(BATCH, SIZE, seed=1)
    with ignoring():
        solution = solver.solve(operator_of(matrix), [right])
    assert not solution.converged
    assert bool(solution.vector[0][1].isnan().any())
    expected = solve_dense(torch.from_numpy(system(matrix[0])).expand(BATCH, -1, -1), right)
    torch.testing.assert_close(solution.vector[0][[0, 2]], expected[[0, 2]], rtol=1e-9, atol=1e-10)
    assert solution.steps < 60


@EVERY_SOLVER
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_updates_in_half_precision_converge_to_their_rounding(solver: LinearSolver, dtype: torch.dtype) -> None:
    """The solution is as accurate as the products, and not a failure."""
    matrix, right = symmetric(0.8, SIZE).to(dtype), draw(BATCH, SIZE, seed=1).float()
    state = torch.zeros(BATCH, SIZE, dtype=dtype)
    operator = JacobianOperator.at(lambda h: h @ matrix, state, batch_dims=1)
    with ignoring():
        solution = solver.solve(operator, [right])
    assert solution.converged
    expected = solve_dense(torch.from_numpy(system(matrix.double())).expand(BATCH, -1, -1), right.double())
    error = (solution.vector[0] - expected).norm(dim=-1) / expected.norm(dim=-1)
    assert float(error.max()) < 30 * torch.finfo(dtype).eps
    assert solution.steps < 100


@EVERY_SOLVER
def test_leaves_of_different_sizes_and_dtypes_each_converge(solver: LinearSolver) -> None:
    state = {"large": torch.zeros(2, 4, dtype=torch.float64), "small": torch.zeros(2, 3, 2)}
    operator = JacobianOperator.at(lambda h: {"large": 0.9 * h["large"], "small": -0.5 * h["small"]}, state, 1)
    gradient = [1e6 * draw(2, 4, seed=0), draw(2, 3, 2, seed=1).float()]
    solution = solver.solve(operator, gradient)
    torch.testing.assert_close(solution.vector[0], 10 * gradient[0], rtol=1e-5, atol=0)
    torch.testing.assert_close(solution.vector[1].float(), gradient[1] / 1.5, rtol=1e-4, atol=1e-5)


# --- the assumptions of the conjugate gradient method


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_indefinite_and_asymmetric_jacobians_are_reported_by_conjugate_gradients(dtype: torch.dtype) -> None:
    right = [draw(BATCH, SIZE, seed=1).to(dtype)]
    indefinite = symmetric(3.0, SIZE)
    mixed = torch.stack([symmetric(0.9, SIZE), indefinite, general(0, 2.0)]).to(dtype)
    with pytest.warns(UserWarning, match=r"not symmetric in 1 of 3 .* not positive in 1 of 3 .*GMRES"):
        solution = ConjugateGradient().solve(operator_of(mixed), right)
    assert not solution.converged
    assert float(solution.residual[0]) < 1e-4
    assert float(solution.residual.max()) < 10  # the unsuitable samples stopped early
    assert solution.steps < 100
    with recorded_failures() as reported:
        assert not ConjugateGradient(4, 1e-6).solve(operator_of(symmetric(0.9, SIZE).to(dtype)), right).converged
    assert reported == []  # too few steps are not a reason


# --- the gmres function, Dense, Direct and the Krylov fallback


def test_gmres_solves_with_any_operator() -> None:
    """With two batch dimensions, a start and a given measure of the residual, as forward solvers call it."""
    matrix = torch.eye(8, dtype=torch.float64) + 0.3 * draw(8, 8, seed=0)
    right, start = draw(2, 3, 8, seed=1), draw(2, 3, 8, seed=2)
    options = {"steps": 40, "tol": 1e-10, "restart": 8, "check_every": 4, "epsilon": 2e-16}
    for first in (None, start):
        found = gmres(lambda v: v @ matrix.T, right, first, **options)
        assert found.converged
        torch.testing.assert_close(found.solution @ matrix.T, right, rtol=1e-8, atol=1e-9)
        assert found.residual.shape == (2, 3)
    loose = gmres(lambda v: v @ matrix.T, right, **options, measure=lambda r, x: 1e-12 * r.norm(dim=-1))
    assert loose.steps < found.steps


def test_dense_refuses_samples_that_are_too_large() -> None:
    with pytest.raises(UserError, match=r"Dense: max_size=20.* 30 elements.*GMRES"):
        Dense(20).solve(operator_of(general()), [draw(BATCH, SIZE, seed=0)])


def test_direct_by_gmres_is_exact_and_keeps_to_max_products() -> None:
    matrix = general(0, 0.97, 150)
    right = draw(BATCH, 150, seed=1)
    solution = Direct(0).solve(operator_of(matrix), [right])
    expected = solve_dense(torch.from_numpy(system(matrix)).expand(BATCH, -1, -1), right)
    assert float(((solution.vector[0] - expected).norm(dim=-1) / expected.norm(dim=-1)).max()) < 1e-11
    assert solution.converged
    assert not Direct(0, max_products=20).solve(operator_of(matrix), [right]).converged


def test_the_fallback_uses_conjugate_gradients_if_gmres_stagnates() -> None:
    """I - J is a cyclic shift, for which restarted GMRES makes no progress at all."""
    shift = torch.eye(SIZE, dtype=torch.float64).roll(1, 0)
    stagnating = torch.eye(SIZE, dtype=torch.float64) - shift
    both = torch.stack([stagnating, general(0, 2.0), symmetric(0.5, SIZE)])
    right = torch.zeros(BATCH, SIZE, dtype=torch.float64)
    right[:, 0] = 1
    assert float(GMRES(100).solve(operator_of(both), [right]).residual[0]) > 0.99
    with recorded_failures() as reported:
        solution = AdaptiveNeumannSeries().solve(operator_of(both), [right])
    assert reported == [Failure.NO_CONTRACTION]
    assert solution.converged
    dense = torch.eye(SIZE, dtype=torch.float64) - both.mT
    residual = (right - (dense @ solution.vector[0][..., None]).squeeze(-1)).norm(dim=-1)
    assert float(residual.max()) < 1.1e-4
