"""The Nystroem approximation, against its definition with dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rbp_lightning import Failure, Implicit, JacobianOperator, Nystrom, Picard
from tests.recorded_failures import recorded_failures
from tests.zoo import draw, solve_dense

SIZE = 9


def curvature(seed: int, rank: int = SIZE, least: float = 1e-3) -> Tensor:
    """A symmetric matrix with eigenvalues from 1 down to ``least``, and 0 beyond its rank."""
    basis = torch.linalg.qr(draw(SIZE, SIZE, seed=seed))[0]
    values = torch.logspace(0, torch.tensor(least).log10().item(), SIZE, dtype=torch.float64)
    values[rank:] = 0
    return basis * values @ basis.T


def descent(*matrices: Tensor) -> JacobianOperator:
    """The Jacobian of gradient descent h <- h - A h, with one A per sample."""
    stacked = torch.stack(matrices)
    zeros = torch.zeros(stacked.shape[:2], dtype=stacked.dtype)
    return JacobianOperator.at(lambda h: h - (stacked @ h[..., None]).squeeze(-1), zeros, batch_dims=1)


def columns_of(solver: Nystrom) -> list[int]:
    """The columns that a solver samples, in order, read from its products."""
    found: list[int] = []

    class Seen(JacobianOperator):
        def vjp(self, cotangent):  # type: ignore[no-untyped-def]
            found.append(int(cotangent[0].argmax()))
            return super().vjp(cotangent)

    operator = Seen.at(lambda h: h - h, torch.zeros(1, SIZE, dtype=torch.float64), batch_dims=1)
    solver.solve(operator, [torch.ones(1, SIZE, dtype=torch.float64)])
    return found[: solver.rank]


def by_definition(matrix: Tensor, chosen: list[int], damping: float, gradient: Tensor) -> Tensor:
    """Applies the inverse of C W^+ C^T + rho I by the Woodbury identity (equation 6 of the paper)."""
    part, square = matrix[:, chosen], matrix[chosen][:, chosen]
    small = square + part.T @ part / damping
    return gradient / damping - part @ solve_dense(small, part.T @ gradient) / damping**2


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, SIZE - 1), damping=st.floats(1e-2, 1.0))
def test_the_solution_is_the_damped_nystroem_inverse_in_every_sample(seed: int, rank: int, damping: float) -> None:
    matrices, gradient = [curvature(seed), 0.3 * curvature(seed + 1)], draw(2, SIZE, seed=seed + 2)
    solver = Nystrom(rank, damping, seed)
    chosen = columns_of(solver)
    assert len(set(chosen)) == rank
    solution = solver.solve(descent(*matrices), [gradient])
    for matrix, right, found, residual in zip(matrices, gradient, solution.vector[0], solution.residual, strict=True):
        part, square = matrix[:, chosen], matrix[chosen][:, chosen]
        approximation = part @ torch.linalg.pinv(square, hermitian=True) @ part.T
        identity = torch.eye(SIZE, dtype=torch.float64)
        torch.testing.assert_close(found, solve_dense(approximation + damping * identity, right), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(found, by_definition(matrix, chosen, damping, right), rtol=1e-7, atol=1e-9)
        torch.testing.assert_close(residual, (right - matrix @ found).norm() / right.norm())
    assert solution.products == rank + 1


@pytest.mark.parametrize("damping", [1e-2, 1e-5, 1e-10])
def test_all_columns_with_little_damping_give_the_dense_solution(damping: float) -> None:
    matrix, gradient = curvature(0, least=0.1), draw(1, SIZE, seed=1)
    found = Nystrom(SIZE, damping).solve(descent(matrix), [gradient]).vector[0][0]
    exact = solve_dense(matrix, gradient[0])
    assert float((found - exact).norm() / exact.norm()) < 10 * damping


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, 5))
def test_as_many_columns_as_the_rank_suffice_for_gradients_in_the_range(seed: int, rank: int) -> None:
    """With more columns W is singular, as for a network with inactive units."""
    matrix = curvature(seed, rank, least=0.1)
    exact = matrix @ draw(SIZE, seed=seed + 1)
    for columns in (rank, rank + 3):
        # A column that is nearly a combination of the others makes W nearly singular.
        found = Nystrom(columns, 1e-7, seed).solve(descent(matrix), [(matrix @ exact)[None]]).vector[0][0]
        assert float((found - exact).norm() / exact.norm()) < 1e-3


@pytest.mark.parametrize("damping", [1e-2, 1e-4])
def test_float32_is_accurate_enough_for_small_learning_rates(damping: float) -> None:
    """I - J is a small difference of numbers close to 1."""
    matrix, gradient = 0.1 * curvature(0), draw(1, SIZE, seed=1)
    for rank in (4, SIZE):
        exact = Nystrom(rank, damping).solve(descent(matrix), [gradient]).vector[0]
        with recorded_failures() as reported:
            found = Nystrom(rank, damping).solve(descent(matrix.float()), [gradient.float()]).vector[0]
        assert float((found - exact).norm() / exact.norm()) < 1e-2
        assert not reported


def test_columns_depend_only_on_the_seed() -> None:
    torch.manual_seed(0)
    untouched = torch.random.get_rng_state()
    first, again, other = (columns_of(Nystrom(4, seed=seed)) for seed in (3, 3, 4))
    assert torch.equal(torch.random.get_rng_state(), untouched)
    assert first == again != other


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 10**6), rank=st.integers(1, SIZE))
def test_an_asymmetric_jacobian_is_reported(seed: int, rank: int) -> None:
    matrix, gradient = curvature(seed), draw(2, SIZE, seed=seed + 1)
    with recorded_failures() as reported:
        Nystrom(rank).solve(descent(matrix, matrix), [gradient])
        assert reported == []
        Nystrom(rank).solve(descent(matrix, matrix + 1e-3 * draw(SIZE, SIZE, seed=seed + 2)), [gradient])
    assert reported == [Failure.NOT_POSITIVE_DEFINITE]


def test_nan_in_the_jacobian_stays_in_its_sample() -> None:
    matrix = curvature(0)
    gradient = draw(2, SIZE, seed=1)
    solution = Nystrom(4).solve(descent(torch.full_like(matrix, float("nan")), matrix), [gradient])
    assert bool(solution.vector[0][0].isnan().all())
    torch.testing.assert_close(solution.vector[0][1:], Nystrom(4).solve(descent(matrix), [gradient[1:]]).vector[0])
    assert not solution.converged


def test_the_hypergradient_of_a_ridge_coefficient_is_exact_at_full_rank() -> None:
    """Gradient descent on |X w - y|^2 / 2n + c |w|^2 / 2, whose minimum has a closed form."""
    design, targets, held_out = draw(20, SIZE, seed=0), draw(20, seed=1), draw(SIZE, seed=2)
    coefficient = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
    hessian = design.T @ design / 20 + coefficient * torch.eye(SIZE, dtype=torch.float64)
    exact = torch.autograd.grad(held_out @ solve_dense(hessian, design.T @ targets / 20), coefficient)[0]

    def step(weights: Tensor) -> Tensor:
        return weights - 0.3 * (design.T @ (design @ weights - targets) / 20 + coefficient * weights)

    for rank, damping in ((SIZE, 1e-9), (1, 0.5)):
        with recorded_failures() as reported:
            estimator = Implicit(Nystrom(rank, damping), Picard(500, tol=1e-12))
            state = estimator(step, torch.zeros(SIZE, dtype=torch.float64)).state
            found = torch.autograd.grad(held_out @ state, coefficient)[0]
        assert (abs(float(found / exact) - 1) < 1e-6) == (rank == SIZE)
        assert reported == ([] if rank == SIZE else [Failure.ADJOINT])
