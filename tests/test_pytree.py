"""Norms of states."""

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning.pytree import approximate_norm, approximate_norms, divisor, norm

EXPONENTS = st.integers(-36, 36)
BOTH = pytest.mark.parametrize("function", [norm, approximate_norm])


@BOTH
@settings(deadline=None)
@given(exponents=st.lists(EXPONENTS, min_size=1, max_size=4), other=EXPONENTS, seed=st.integers(0, 99))
def test_norms_of_float32_are_right_at_any_scale(
    function: Callable, exponents: list[int], other: int, seed: int
) -> None:
    torch.manual_seed(seed)
    scales = torch.tensor([10.0**exponent for exponent in exponents])
    samples = scales[:, None] * torch.randn(len(exponents), 50)  # each of its own scale
    leaves = [samples, 10.0**other * torch.randn(len(exponents), 3, 2)]
    for vector in ([samples], leaves):
        for batch_dims in (0, 1):
            flat = [leaf.double().reshape(*leaf.shape[:batch_dims], -1) for leaf in vector]
            exact = torch.cat(flat, dim=-1).norm(dim=-1)
            found = function(vector, batch_dims)
            assert found.dtype is torch.float32
            torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-44)


@BOTH
def test_norms_of_what_is_zero_empty_or_not_finite(function: Callable) -> None:
    vector = [torch.tensor([[0.0, 0.0], [3.0, 4.0], [float("inf"), 1.0], [float("nan"), 1.0]])]
    expected = torch.tensor([0.0, 5.0, float("inf"), float("nan")])
    torch.testing.assert_close(function(vector, 1), expected, equal_nan=True)
    torch.testing.assert_close(function([*vector, torch.zeros(4, 0)], 1), expected, equal_nan=True)
    torch.testing.assert_close(function([torch.zeros(3, 0)], 1), torch.zeros(3))


@pytest.mark.parametrize("other", [0.0, float("nan"), float("inf"), 1e-20, 1e30])
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_only_of_ordinary_figures_it_is_known_that_they_are(other: float, batch_dims: int) -> None:
    ordinary, single = torch.ones(2, 3), torch.tensor([[1.0, 1.0, 1.0], [other, other, other]])
    assert approximate_norms([[ordinary], [2 * ordinary]], batch_dims)[1]
    for vectors in ([[ordinary], [single]], [[single], [ordinary]]):
        norms, known = approximate_norms(vectors, batch_dims)
        assert known == (batch_dims == 0 and other in (0.0, 1e-20))  # next to ones it does not count
        for (vector,), found in zip(vectors, norms, strict=True):
            torch.testing.assert_close(found, norm([vector], batch_dims), equal_nan=True)


def test_samples_that_are_numbers_have_their_size_for_a_norm() -> None:
    torch.testing.assert_close(approximate_norm([torch.tensor([-3.0, 4.0])], 1), torch.tensor([3.0, 4.0]))


@BOTH
def test_large_states_are_summed_exactly_enough(function: Callable) -> None:
    for size in (2**18, 2**20, 2**23):
        state = torch.rand(size, generator=torch.Generator().manual_seed(0))
        for leaf, batch_dims in ((state, 0), (0 * state + 0.1, 0), ((0 * state + 0.1).reshape(-1, 4).t(), 1)):
            exact = leaf.double().norm(dim=-1)
            torch.testing.assert_close(function([leaf], batch_dims).double(), exact, rtol=5e-4, atol=0)


def test_a_divisor_has_a_finite_inverse() -> None:
    vector = [torch.tensor([[0.0], [1e-45], [2.0]])]
    found = divisor(vector, 1)
    assert found.tolist() == [1.0, torch.finfo(torch.float32).tiny, 2.0]
    assert bool((1 / found).isfinite().all())
