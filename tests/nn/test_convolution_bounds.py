"""Norm bounds of convolutions, against the dense operator in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rbp_lightning import UserError, contractive
from rbp_lightning.nn import FrobeniusConvolutionBound, InfinityConvolutionBound, SpectralConvolutionBound

ORDERS = {"spectral": 2, "frobenius": 2, "infinity": np.inf}
KINDS = [SpectralConvolutionBound, FrobeniusConvolutionBound, InfinityConvolutionBound]
LAYERS = [nn.Conv1d, nn.Conv2d, nn.Conv3d]
Case = tuple[nn.Module, tuple[int, ...]]


def operator(layer: nn.Module, shape: tuple[int, ...]) -> np.ndarray:
    """The linear part of a layer as a matrix, for inputs of a shape."""
    count = int(np.prod(shape))
    with torch.no_grad():
        images = layer(torch.eye(count, dtype=torch.float64).reshape(count, *shape))
        return (images - layer(torch.zeros(1, *shape, dtype=torch.float64))).flatten(1).T.numpy()


@st.composite
def layers(draw: st.DrawFn) -> Case:
    """A random convolution, and the shape of a small input for it."""
    dims = draw(st.integers(1, 3))
    modes = ["zeros", "circular"]

    def each(low: int, high: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(low, high)) for _ in range(dims))

    kernel, stride, dilation = each(1, 3), each(1, 3), each(1, 2)
    mode = draw(st.sampled_from(modes))
    reach = [gap * (taps - 1) for gap, taps in zip(dilation, kernel, strict=True)]
    padding = tuple(draw(st.integers(0, one // 2 if mode == "circular" else one + 1)) for one in reach)
    size = tuple(one + draw(st.integers(1, {1: 9, 2: 4, 3: 2}[dims])) for one in reach)
    groups = draw(st.integers(1, 2))
    inside, outside = (groups * draw(st.integers(1, 2)) for _ in range(2))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    options: dict[str, Any] = {"padding_mode": mode, "groups": groups, "dtype": torch.float64}
    layer = LAYERS[dims - 1](inside, outside, kernel, stride, padding, dilation, **options)
    with torch.no_grad():
        layer.weight.mul_(10 ** draw(st.floats(-3, 3)))
        if draw(st.booleans()):  # with weights of one sign the norm is attained at frequency 0
            layer.weight.abs_()
    return layer, (inside, *size)


@pytest.mark.parametrize("norm", ORDERS)
@settings(max_examples=40, deadline=None)
@given(case=layers(), bound=st.floats(-2, 1).map(lambda exponent: 10**exponent))
def test_the_dense_operator_is_within_the_bound(
    norm: str, case: tuple[nn.Module, tuple[int, ...]], bound: float
) -> None:
    layer, shape = case
    before = layer.weight.detach().clone()
    unbounded = np.linalg.norm(operator(layer, shape), ORDERS[norm])
    contractive(layer, bound, norm)
    found = np.linalg.norm(operator(layer, shape), ORDERS[norm])
    assert found <= bound * (1 + 1e-10)
    assert found <= unbounded * (1 + 1e-10)
    if unbounded > bound * (1 + 1e-10):
        assert not torch.equal(layer.weight, before)


@pytest.mark.parametrize(("dims", "share"), [(1, 0.93), (2, 0.89), (3, 0.86)])
def test_the_spectral_bound_is_nearly_attained(dims: int, share: float) -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        options: dict[str, Any] = {"padding": 1, "padding_mode": "circular", "bias": False, "dtype": torch.float64}
        layer = LAYERS[dims - 1](3, 3, 3, **options)
        with torch.no_grad():
            layer.weight.mul_(100)
        contractive(layer, 0.9)
        # The singular values of a circular convolution are those of the kernel's Fourier transform at all frequencies.
        spectrum = torch.fft.fftn(layer.weight.detach(), [24] * dims, dim=list(range(2, 2 + dims))).flatten(2)
        largest = float(torch.linalg.matrix_norm(spectrum.movedim(2, 0), 2).max())
        assert share * 0.9 <= largest <= 0.9


@settings(max_examples=20, deadline=None)
@given(case=layers())
def test_the_infinity_bound_is_attained_and_holds_for_any_padding(case: Case) -> None:
    layer = case[0]
    sums = layer.weight.detach().flatten(1).abs().sum(1)
    contractive(layer, 0.5, "infinity")
    found = layer.weight.detach().flatten(1).abs().sum(1)
    torch.testing.assert_close(found, sums.clamp_max(0.5), rtol=1e-12, atol=0)
    for mode in ("reflect", "replicate"):
        other = contractive(nn.Conv2d(2, 2, 3, padding=1, padding_mode=mode, dtype=torch.float64), 0.5, "infinity")
        with torch.no_grad():
            other.parametrizations.weight.original.mul_(10)
        assert np.linalg.norm(operator(other, (2, 4, 4)), np.inf) <= 0.5 * (1 + 1e-12)


@pytest.mark.parametrize("norm", ["spectral", "frobenius"])
def test_the_bound_of_a_strided_circular_convolution_counts_overlaps_across_the_edge(norm: str) -> None:
    # The outputs see the pixels 2, 0, 1 and 1, 2, 0. Without wrapping they would share only one pixel.
    layer = nn.Conv1d(1, 1, 3, stride=2, padding=1, padding_mode="circular", bias=False, dtype=torch.float64)
    nn.init.ones_(layer.weight)
    assert np.linalg.norm(operator(layer, (1, 3)), 2) == pytest.approx(6**0.5)
    contractive(layer, 1.0, norm)
    assert np.linalg.norm(operator(layer, (1, 3)), 2) <= 1


@pytest.mark.parametrize("kind", KINDS)
def test_kernels_within_the_bound_and_their_gradients_are_unchanged(kind: type) -> None:
    for kernel in (0.01 * torch.randn(3, 2, 3, 3), torch.zeros(3, 2, 3, 3)):
        kernel.requires_grad_()
        options = {} if kind is InfinityConvolutionBound else {"stride": (1, 2), "dilation": (1, 1)}
        bounded = kind(0.9, **options)(kernel)
        weights = torch.randn_like(kernel)
        (weights * bounded).sum().backward()
        assert torch.equal(bounded, kernel)
        assert torch.equal(kernel.grad, weights)


@pytest.mark.parametrize("stride", [(1, 1), (2, 1)])
@pytest.mark.parametrize("kind", [SpectralConvolutionBound, FrobeniusConvolutionBound])
def test_gradients_match_finite_differences(kind: type, stride: tuple[int, ...]) -> None:
    kernel = torch.randn(2, 1, 3, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    bound = kind(0.5, stride=stride, dilation=(2, 1), groups=2)
    assert torch.autograd.gradcheck(bound, kernel.requires_grad_())


@pytest.mark.parametrize("kind", [SpectralConvolutionBound, FrobeniusConvolutionBound])
def test_groups_are_scaled_separately(kind: type) -> None:
    kernel = torch.ones(2, 1, 1, dtype=torch.float64)
    kernel[1] = 0.25
    bounded = kind(0.5, groups=2)(kernel)
    torch.testing.assert_close(bounded.flatten(), torch.tensor([0.5, 0.25], dtype=torch.float64), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_bound_holds_in_low_precision_for_any_scale(dtype: torch.dtype) -> None:
    for scale in (1e-4, 1.0, 1e4):
        kernel = (scale * torch.randn(4, 4, 3, 3, generator=torch.Generator().manual_seed(0))).to(dtype)
        bounded = SpectralConvolutionBound(0.9, (1, 1), (1, 1))(kernel)
        assert bounded.dtype is dtype
        layer = nn.Conv2d(4, 4, 3, padding=1, bias=False, dtype=torch.float64)
        layer.weight.data = bounded.double()
        assert np.linalg.norm(operator(layer, (4, 6, 6)), 2) <= 0.9 * (1 + 2 * torch.finfo(dtype).eps)
    assert SpectralConvolutionBound(0.9)(torch.full((1, 1, 3), float("nan"), dtype=dtype)).isnan().all()


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (lambda: SpectralConvolutionBound(0.9)(torch.ones(2, 2)), "must be the kernel of a convolution"),
        (lambda: InfinityConvolutionBound(0.9)(torch.ones(2, 2)), "must be the kernel of a convolution"),
        (lambda: FrobeniusConvolutionBound(0.9)(torch.ones(2, 2, 3, 3)), "each of the 2 dimensions"),
        (lambda: SpectralConvolutionBound(0.9, groups=2)(torch.ones(3, 2, 3)), "groups=2 does not divide 3"),
        (lambda: SpectralConvolutionBound(0.0), "bound=0.0"),
        (lambda: SpectralConvolutionBound(0.9, stride=(0,)), "stride=0"),
    ],
)
def test_invalid_arguments_are_refused(make: Any, what: str) -> None:
    with pytest.raises(UserError, match=what):
        make()
