"""Spectral radius and norm bounds, against dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from rbp_lightning import JacobianOperator, UserError, norm_bounds, spectral_radius


def operator_of(matrices: Tensor) -> JacobianOperator:
    """The Jacobians J of linear updates, one matrix per sample."""
    state = torch.zeros(matrices.shape[:-1], dtype=matrices.dtype)
    return JacobianOperator.at(lambda h: (matrices @ h[..., None]).squeeze(-1), state, state.dim() - 1)


def random_matrices(seed: int, size: int, batch: int = 3, scale: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(batch, size, size, generator=generator, dtype=torch.float64)


def radii(matrices: Tensor) -> Tensor:
    return torch.linalg.eigvals(matrices).abs().amax(-1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 12), scale=st.floats(1e-3, 1e3))
def test_the_spectral_radius_of_small_matrices_is_exact(seed: int, size: int, scale: float) -> None:
    matrices = random_matrices(seed, size, scale=scale)
    found = spectral_radius(operator_of(matrices), krylov_steps=12)
    torch.testing.assert_close(found.value, radii(matrices), rtol=1e-3, atol=0)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.integers(20, 60))
def test_a_converged_estimate_of_the_spectral_radius_is_right(seed: int, size: int) -> None:
    matrices = random_matrices(seed, size, scale=size**-0.5)
    found = spectral_radius(operator_of(matrices), steps=200, krylov_steps=20)
    exact = radii(matrices)
    converged = found.residual <= 1e-8 * found.value
    torch.testing.assert_close(found.value[converged], exact[converged], rtol=1e-5, atol=0)
    assert bool((found.value <= exact * 1.5).all())


def test_the_spectral_radius_of_a_complex_pair_is_found() -> None:
    matrix = torch.diag(torch.linspace(0, 0.5, 300, dtype=torch.float64))
    matrix[0, 0] = matrix[1, 1] = 0.3
    matrix[0, 1], matrix[1, 0] = -0.9, 0.9
    found = spectral_radius(operator_of(matrix[None]))
    assert float(found.value) == pytest.approx((0.3**2 + 0.9**2) ** 0.5, rel=1e-4)
    assert float(found.residual) < 1e-3


@pytest.mark.parametrize(("size", "bulk", "outlier"), [(2000, 0.99, 1.01), (10_000, 0.95, 1.0), (1000, 0.995, 1.005)])
def test_an_eigenvalue_just_outside_a_cluster_is_found(size: int, bulk: float, outlier: float) -> None:
    values = torch.full((1, size), bulk)
    values[0, 7] = outlier
    jacobian = JacobianOperator.at(lambda h: values * h, torch.zeros(1, size), 1)
    assert float(spectral_radius(jacobian).value) == pytest.approx(outlier, rel=1e-4)


@pytest.mark.parametrize("matrix", [[[0.0, 1.0], [0.0, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], ids=["nilpotent", "zero"])
def test_nilpotent_and_zero_matrices_have_spectral_radius_zero(matrix: list[list[float]]) -> None:
    found = spectral_radius(operator_of(torch.tensor([matrix])))
    assert float(found.value) == pytest.approx(0, abs=1e-3)
    bounds = norm_bounds(operator_of(torch.tensor([matrix])), steps=20)
    assert float(bounds.lower) == pytest.approx(torch.tensor(matrix).max())


def test_nan_stays_in_its_sample() -> None:
    matrices = random_matrices(0, 4)
    matrices[1, 2, 3] = float("nan")
    assert spectral_radius(operator_of(matrices)).value.isnan().tolist() == [False, True, False]
    bounds = norm_bounds(operator_of(matrices))
    assert bounds.lower.isnan().tolist() == bounds.upper.isnan().tolist() == [False, True, False]


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    size=st.integers(1, 40),
    steps=st.integers(1, 40),
    decay=st.floats(0, 3),
    dtype=st.sampled_from([torch.float32, torch.float64]),
)
def test_the_norm_lies_between_its_bounds(seed: int, size: int, steps: int, decay: float, dtype: torch.dtype) -> None:
    matrices = random_matrices(seed, size) @ torch.diag(torch.arange(1, size + 1, dtype=torch.float64) ** -decay)
    exact = torch.linalg.matrix_norm(matrices, 2)
    bounds = norm_bounds(operator_of(matrices.to(dtype)), steps)
    rounding = 1e-5 if dtype == torch.float32 else 1e-12
    assert bool((bounds.lower <= exact * (1 + rounding)).all())
    assert bool((bounds.upper >= exact * (1 - rounding)).all())


def test_the_bounds_converge_to_the_norm() -> None:
    matrices = random_matrices(3, 50, scale=0.05)
    exact = torch.linalg.matrix_norm(matrices, 2)
    found = [norm_bounds(operator_of(matrices), steps) for steps in (20, 40, 80)]
    gaps = [float((bounds.upper / bounds.lower).max()) for bounds in found]
    assert gaps[0] > gaps[1] > gaps[2] > 1
    assert gaps[2] < 1.01
    torch.testing.assert_close(found[2].lower, exact, rtol=1e-4, atol=0)


def test_early_stopping_takes_no_more_steps_than_needed() -> None:
    for scale, max_steps in ((0.01, 16), (10.0, 5)):  # norms clearly below 1, and clearly above
        jacobian = operator_of(random_matrices(0, 30, scale=scale))
        bounds = norm_bounds(jacobian, steps=60, stop_early=True)
        assert jacobian.products <= 2 * max_steps
        assert bool((bounds.upper < 1).all()) == (scale < 1)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), scale=st.floats(0.01, 0.3))
def test_bounds_hold_with_early_stopping_too(seed: int, scale: float) -> None:
    """The several tests of early stopping share one probability of failure."""
    matrices = random_matrices(seed, 10, scale=scale)
    exact = torch.linalg.matrix_norm(matrices, 2)
    early, late = (norm_bounds(operator_of(matrices), 60, stop_early=early) for early in (True, False))
    for bounds in (early, late):
        assert bool((bounds.lower <= exact * (1 + 1e-12)).all())
        assert bool((bounds.upper >= exact * (1 - 1e-12)).all())
    # Tests that share the probability have to be a little stricter each.
    assert bool(
        (
            norm_bounds(operator_of(matrices), 5, stop_early=True).upper >= norm_bounds(operator_of(matrices), 5).upper
        ).all()
    )


def test_invalid_arguments_are_refused() -> None:
    jacobian = operator_of(random_matrices(0, 2))
    for run in (
        lambda: spectral_radius(jacobian, steps=-1),
        lambda: spectral_radius(jacobian, krylov_steps=0),
        lambda: norm_bounds(jacobian, steps=0),
    ):
        with pytest.raises(UserError, match="steps="):
            run()
