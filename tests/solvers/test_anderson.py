"""Anderson acceleration, against SciPy's and against Picard iteration."""

import numpy as np
import pytest
import scipy.optimize
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import Anderson, Broyden, NeumannRBP, Picard, Status, ignoring
from rbp_lightning.solvers.affine_weights import affine_weights
from tests.solvers.iterates import iterates
from tests.zoo import draw, named, symmetric


def scipy_iterates(method, update, start: torch.Tensor, count: int, **options) -> list[torch.Tensor]:
    """The iterates of a SciPy solver of F(h) - h = 0, without a line search."""
    found = [start]

    def residual(flat: np.ndarray) -> np.ndarray:
        vector = torch.from_numpy(flat)
        return (update(vector) - vector).numpy()

    def keep(flat: np.ndarray, _: np.ndarray) -> None:
        found.append(torch.from_numpy(flat.copy()))

    with pytest.raises(scipy.optimize.NoConvergence):
        method(residual, start.numpy(), alpha=1, iter=count, maxiter=count, f_tol=0, line_search=None, callback=keep,
               **options)  # fmt: skip
    return found


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), radius=st.floats(0.2, 1.5), window=st.integers(2, 5))
def test_iterates_equal_scipy_s(seed: int, radius: float, window: int) -> None:
    matrix, inputs = symmetric(radius, 8, seed), draw(8, seed=seed)

    def update(h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(h @ matrix) + inputs

    expected = scipy_iterates(scipy.optimize.anderson, update, torch.zeros(8).double(), 5, M=window - 1, w0=0)
    found = iterates(Anderson(window=window, regularization=0.0), update, torch.zeros(1, 8).double(), 5)
    for one, other in zip(found, expected, strict=True):
        assert float((one[0] - other).norm()) < 1e-6 * (1 + float(other.norm()))


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), count=st.integers(2, 5), size=st.integers(6, 12))
def test_the_affine_weights_minimise_the_norm_of_the_combination(seed: int, count: int, size: int) -> None:
    vectors = draw(3, count, size, seed=seed)
    weights = affine_weights(vectors @ vectors.mT, newest=0, regularization=0.0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(3).double())
    combined = (weights[:, None] @ vectors).squeeze(1)
    # At the minimum the combination has the same inner product with every vector.
    overlaps = (vectors @ combined[..., None]).squeeze(-1)
    torch.testing.assert_close(overlaps, overlaps[:, :1].expand_as(overlaps), rtol=1e-6, atol=1e-9)


def test_the_newest_vector_alone_is_used_without_a_unique_minimum() -> None:
    alone = torch.tensor([[0.0, 1.0]])
    for gram in ([[4.0, 0.0], [0.0, 0.0]], [[float("nan"), 1.0], [1.0, 2.0]], [[1.0, 2.0], [2.0, 1.0]]):
        assert torch.equal(affine_weights(torch.tensor([gram]), newest=1, regularization=1e-6), alone)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_short_solve_of_an_easy_problem_is_no_worse_than_picard(seed: int, dtype: torch.dtype) -> None:
    """At spectral radius 0.3, published implementations reach 1e-2 in 8 evaluations, Picard iteration 5e-6."""
    matrix, inputs = symmetric(0.3, 64, seed).to(dtype), draw(16, 64, seed=seed).to(dtype)
    residuals = {}
    for solver in (Picard(8, 0), Anderson(8, 0)):
        with torch.no_grad():
            found = NeumannRBP(0, solver)(lambda h: torch.tanh(h @ matrix + inputs), torch.zeros_like(inputs), 1)
        residuals[type(solver)] = float(found.residual.max())
    assert residuals[Anderson] <= max(residuals[Picard], 1e-6)


def test_a_sample_whose_residual_grows_restarts_without_affecting_others() -> None:
    """Every sample ends as it does alone."""

    def update(h: torch.Tensor) -> torch.Tensor:
        return torch.where(h.abs() > 2, -h * 1.5, 0.9 * torch.cos(h))

    start = torch.tensor([[0.1, 0.2], [5.0, 3.0]]).double()
    with torch.no_grad(), ignoring():
        together = NeumannRBP(0, Anderson(200, 1e-10))(update, start, batch_dims=1)
        alone = [NeumannRBP(0, Anderson(200, 1e-10))(update, one[None], batch_dims=1) for one in start]
    for index, one in enumerate(alone):
        assert together.sample_status[index] == one.sample_status[0]
        torch.testing.assert_close(together.state[index], one.state[0], rtol=1e-6, atol=1e-9)


def test_damping_scales_the_step() -> None:
    problem = named("linear 0.9")
    plain = iterates(Anderson(damping=0.5), problem.update, problem.start, 1)[1]
    torch.testing.assert_close(plain, 0.5 * problem.update(problem.start))
    with torch.no_grad():
        found = NeumannRBP(0, Anderson(200, 1e-9, damping=0.5))(problem.update, problem.start, batch_dims=1)
    assert found.status is Status.CONVERGED
    torch.testing.assert_close(found.state, problem.fixed_point, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("solver", [Anderson, Broyden], ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(("start", "image"), [(torch.float32, torch.float64), (torch.float64, torch.float32)])
def test_an_update_may_return_another_precision_than_the_initial_state(
    solver: type, start: torch.dtype, image: torch.dtype
) -> None:
    slopes = torch.tensor([0.9, -0.5, 0.3], dtype=image)
    with torch.no_grad():
        found = NeumannRBP(0, solver(100, 1e-5))(lambda h: slopes * h.to(image) + 1, torch.zeros(3, dtype=start))
    assert found.converged
    assert found.state.dtype is image
    torch.testing.assert_close(found.state, 1 / (1 - slopes), rtol=1e-3, atol=0)
