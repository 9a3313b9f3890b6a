"""Vector operations on pytrees: norms, inner products and scaling."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import FixedPointAdjoint, JacobianOperator
from rbp_lightning.linear import GMRES, NormalCG
from rbp_lightning.pytree import denormalize, divide, inner, norm, normalize, scale, where
from tests.zoo import draw, symmetric

EXPONENTS = st.integers(-18, 18)  # float32 can represent the squares


@settings(deadline=None)
@given(exponents=st.lists(EXPONENTS, min_size=1, max_size=4), other=EXPONENTS, seed=st.integers(0, 99))
def test_norms_in_float32_match_those_in_float64(exponents: list[int], other: int, seed: int) -> None:
    torch.manual_seed(seed)
    scales = torch.tensor([10.0**exponent for exponent in exponents])
    samples = scales[:, None] * torch.randn(len(exponents), 50)  # each with its own scale
    leaves = [samples, 10.0**other * torch.randn(len(exponents), 3, 2)]
    for vector in ([samples], leaves):
        for batch_dims in (0, 1):
            flat = [leaf.double().reshape(*leaf.shape[:batch_dims], -1) for leaf in vector]
            exact = torch.cat(flat, dim=-1).norm(dim=-1)
            found = norm(vector, batch_dims)
            assert found.dtype is torch.float32
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-22)


def test_norms_of_zero_empty_and_nonfinite_samples() -> None:
    vector = [torch.tensor([[0.0, 0.0], [3.0, 4.0], [float("inf"), 1.0], [float("nan"), 1.0]])]
    expected = torch.tensor([0.0, 5.0, float("inf"), float("nan")])
    torch.testing.assert_close(norm(vector, 1), expected, equal_nan=True)
    torch.testing.assert_close(norm([*vector, torch.zeros(4, 0)], 1), expected, equal_nan=True)
    torch.testing.assert_close(norm([torch.zeros(3, 0)], 1), torch.zeros(3))


def test_the_norm_of_scalar_samples_is_their_absolute_value() -> None:
    torch.testing.assert_close(norm([torch.tensor([-3.0, 4.0])], 1), torch.tensor([3.0, 4.0]))


def test_norms_of_large_states_are_within_one_percent() -> None:
    for size in (2**18, 2**20, 2**23):
        state = torch.rand(size, generator=torch.Generator().manual_seed(0))
        for leaf, batch_dims in ((state, 0), (0 * state + 0.1, 0), ((0 * state + 0.1).reshape(-1, 4).t(), 1)):
            exact = leaf.double().norm(dim=-1)
            torch.testing.assert_close(norm([leaf], batch_dims).double(), exact, rtol=1e-2, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_is_summed_in_float32(dtype: torch.dtype) -> None:
    ones = torch.ones(2, 100_000, dtype=dtype)
    torch.testing.assert_close(norm([ones], 1), torch.full((2,), 100_000**0.5))
    torch.testing.assert_close(inner([ones], [ones], 1), torch.full((2,), 100_000.0))


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 99), batch_dims=st.integers(0, 2))
def test_inner_products_equal_those_of_flat_vectors(seed: int, batch_dims: int) -> None:
    torch.manual_seed(seed)
    left, right = ([torch.randn(2, 3, 4), torch.randn(2, 3)] for _ in range(2))
    flat = [torch.cat([leaf.reshape(*leaf.shape[:batch_dims], -1) for leaf in one], -1) for one in (left, right)]
    torch.testing.assert_close(inner(left, right, batch_dims), (flat[0] * flat[1]).sum(-1))


@pytest.mark.parametrize("scale", [0.0, 1e-45, 1e-38, 1e-6, 1.0, 1e30])
def test_normalize_scales_the_largest_entry_to_at_least_one_and_below_two_and_is_inverted(scale: float) -> None:
    vector = [scale * torch.tensor([[1.0, -0.5], [0.25, 0.0]]), scale * torch.tensor([0.5, 0.5])]
    scaled, size = normalize(vector, always=True)
    largest = max(float(leaf.abs().max()) for leaf in scaled)
    assert largest < 2
    if scale >= 1e-37:
        assert largest >= 1
    for one, other in zip(denormalize(scaled, size, vector), vector, strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("scale", [0.0, 1e-30, 1e-12, 1e12, 1e30])
def test_very_small_and_very_large_vectors_are_normalized_in_float32(scale: float) -> None:
    scaled, size = normalize([torch.tensor([scale, 0.0])])
    assert 1 <= float(scaled[0][0]) < 2 or scale == 0
    torch.testing.assert_close(denormalize(scaled, size, scaled)[0][0], torch.tensor(scale))


@settings(deadline=None, max_examples=20)
@given(factor=st.floats(0.01, 20), seed=st.integers(0, 99), dtype=st.sampled_from([torch.float32, torch.float64]))
def test_a_linear_solve_is_the_same_with_and_without_normalization(
    factor: float, seed: int, dtype: torch.dtype
) -> None:
    """A GPU always normalizes, and a CPU does not where it need not."""
    gradient = factor * draw(3, 6, seed=seed).to(dtype)
    matrix = symmetric(0.9, 6, seed).to(dtype)
    operator = JacobianOperator.at(lambda h: h @ matrix, torch.zeros_like(gradient), 1)
    scaled, size = normalize([gradient], always=True)
    for solver in (FixedPointAdjoint(), GMRES(20), NormalCG(20)):
        found = denormalize(solver.solve(operator, scaled).vector, size, [gradient])
        assert torch.equal(found[0], solver.solve(operator, [gradient]).vector[0])


def test_a_zero_vector_of_two_precisions_stays_zero() -> None:
    scaled, _ = normalize([torch.zeros(2), torch.zeros(2, dtype=torch.float64)])
    assert all(torch.equal(leaf, torch.zeros_like(leaf)) for leaf in scaled)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nonfinite_entries_leave_the_others_unchanged(bad: float) -> None:
    scaled, size = normalize([torch.tensor([bad, 2.0, 0.0])], 1e-7)
    assert denormalize(scaled, size, [torch.zeros(3)])[0][1:].tolist() == [2.0, 0.0]


def test_low_precision_is_normalized_in_float32_and_restored_exactly() -> None:
    vector = [torch.tensor([3e-5, 1e-5], dtype=torch.float16)]
    scaled, size = normalize(vector, always=True)
    assert scaled[0].dtype is torch.float32
    back = denormalize(scaled, size, vector)[0]
    assert back.dtype is torch.float16
    assert torch.equal(back, vector[0])


def test_scale_where_and_divide_act_per_sample() -> None:
    vector = [torch.ones(2, 3), torch.ones(2, dtype=torch.float64)]
    scaled = scale(torch.tensor([2.0, 3.0]), vector)
    assert scaled[0].tolist() == [[2.0] * 3, [3.0] * 3]
    assert scaled[1].tolist() == [2.0, 3.0]
    assert scaled[1].dtype is torch.float64
    chosen = where(torch.tensor([True, False]), vector, scaled)
    assert chosen[0].tolist() == [[1.0] * 3, [3.0] * 3]
    assert divide(torch.tensor([1.0, 2.0]), torch.tensor([0.0, 4.0])).tolist() == [1.0, 0.5]
