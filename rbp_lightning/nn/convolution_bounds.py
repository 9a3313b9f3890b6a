"""Bounds on the operator norm of a convolution, like those of a matrix in ``norm_bounds``.

They are parametrizations of the kernel, ``[out, in / groups, *taps]``. They bound the norm of the linear operator from
image to image, for images of any size, with ``padding_mode="zeros"`` and any padding, or ``"circular"`` and at most the
padding that keeps the image size. Groups are independent, so each group is scaled by its own norm.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from rbp_lightning.errors import UserError, check_count
from rbp_lightning.nn.norm_bounds import InfinityNormBound, NormBound

_SQUARINGS = 6
_FINENESS = 8


class ConvolutionBound(NormBound):
    """Base class of the bounds in the Euclidean norm.

    Args:
        bound: Largest norm, above 0. A group within the bound is not changed.
        stride: Stride in each dimension of the image; 1 for circular padding, whatever the stride.
        dilation: Dilation in each dimension of the image.
        groups: Number of groups.

    Raises:
        UserError: If an argument is invalid.
    """

    def __init__(self, bound: float, stride: Sequence[int] = (1,), dilation: Sequence[int] = (1,), groups: int = 1):
        super().__init__(bound)
        self.stride = tuple(check_count(self, "stride", one, 1) for one in stride)
        self.dilation = tuple(check_count(self, "dilation", one, 1) for one in dilation)
        self.groups = check_count(self, "groups", groups, 1)

    def check(self, weight: Tensor) -> None:
        """Checks that the weight is a kernel with the given dimensions and groups."""
        self._check_kernel(weight)
        if weight.dim() - 2 != len(self.stride) or len(self.stride) != len(self.dilation):
            raise UserError(
                f"{type(self).__name__}: weight has shape {tuple(weight.shape)}, stride={self.stride} and "
                f"dilation={self.dilation}: pass one number for each of the {weight.dim() - 2} dimensions of the image."
            )
        if weight.shape[0] % self.groups:
            raise UserError(f"{type(self).__name__}: groups={self.groups} does not divide {weight.shape[0]} channels.")

    def _bounded(self, weight: Tensor) -> Tensor:
        grouped = weight.reshape(self.groups, -1, *weight.shape[1:])
        norm = self._norm(_with_stride_one(grouped, self.stride, self.dilation))
        return self._scaled(grouped, norm.reshape([-1] + [1] * weight.dim())).flatten(0, 1)

    def _norm(self, kernel: Tensor) -> Tensor:
        """A bound on the norm of each group, for a kernel ``[groups, out, in, *taps]`` with stride 1."""
        raise NotImplementedError

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return f"{super().extra_repr()}, stride={self.stride}, dilation={self.dilation}, groups={self.groups}"


class SpectralConvolutionBound(ConvolutionBound):
    """Scales the kernel so that the spectral norm of the convolution is at most the bound.

    The norm is the largest singular value of the kernel's Fourier transform (Sedghi, Gupta and Long, ICLR 2019, arXiv
    1805.10408) over all frequencies, not only those of one image size. It is bounded from above: on a grid of
    frequencies by Gram iteration (Delattre et al., ICML 2023, arXiv 2305.16173, algorithm 1), and between them because
    squared singular values are bounded by trigonometric polynomials (M. Riesz's lemma, as in Pfister and Bresler, IEEE
    Trans. Signal Process. 2019), by a factor of 1 / cos(pi / 8) per dimension of the kernel with more than one tap. The
    norm is overestimated by at most 4, 8 and 13 percent for kernels of 1, 2 and 3 dimensions, times the 128th root of
    the number of channels. A strided convolution is first rewritten with one channel for each phase of the stride. The
    gradient is that at the frequency of the largest value.

    Args:
        bound: Largest norm, above 0. A group within the bound is not changed.
        stride: Stride in each dimension of the image; 1 for circular padding, whatever the stride.
        dilation: Dilation in each dimension of the image.
        groups: Number of groups.

    Raises:
        UserError: If an argument is invalid.

    Example:
        >>> SpectralConvolutionBound(1.0)(torch.tensor([[[2.0]], [[0.0]]])).flatten()
        tensor([1., 0.])
    """

    def _norm(self, kernel: Tensor) -> Tensor:
        taps = kernel.shape[3:]
        grid = [1 if count == 1 else _FINENESS * (count - 1) for count in taps]
        # For a real kernel, opposite frequencies have the same singular values.
        spectrum = torch.fft.rfftn(kernel, grid, dim=list(range(3, kernel.dim())))
        matrices = spectrum.flatten(3).movedim(3, 1)
        with torch.no_grad():
            largest = _gram_iteration(matrices).argmax(1)
        norm = _gram_iteration(matrices[torch.arange(len(largest), device=largest.device), largest])
        between = math.cos(math.pi / _FINENESS) ** sum(count > 1 for count in taps)
        return norm / math.sqrt(between)


class FrobeniusConvolutionBound(ConvolutionBound):
    """Scales the kernel so that the Frobenius norms of its taps sum to at most the bound.

    The sum is a cheap and rough upper bound on the spectral norm: for k taps of equal norm it can be k times as large.

    Args:
        bound: Largest sum, above 0. A group within the bound is not changed.
        stride: Stride in each dimension of the image; 1 for circular padding, whatever the stride.
        dilation: Dilation in each dimension of the image.
        groups: Number of groups.

    Raises:
        UserError: If an argument is invalid.

    Example:
        >>> FrobeniusConvolutionBound(1.0)(torch.tensor([[[2.0, 2.0]]]))
        tensor([[[0.5000, 0.5000]]])
    """

    def _norm(self, kernel: Tensor) -> Tensor:
        norms: Tensor = torch.linalg.vector_norm(kernel.flatten(3), dim=(1, 2))
        return norms.sum(1)


class InfinityConvolutionBound(InfinityNormBound):
    """Projects the kernel so that the norm of the convolution in the maximum norm is at most the bound.

    The norm is the largest sum of absolute entries of an output channel, for any stride, dilation and padding.

    Args:
        bound: Largest norm, above 0. An output channel within the bound is not changed.

    Raises:
        UserError: If ``bound`` is not a positive number.

    Example:
        >>> InfinityConvolutionBound(1.0)(torch.tensor([[[2.0, -1.5]]]))
        tensor([[[ 0.7500, -0.2500]]])
    """

    def check(self, weight: Tensor) -> None:
        """Checks that the weight is a kernel."""
        self._check_kernel(weight)

    def _bounded(self, weight: Tensor) -> Tensor:
        return super()._bounded(weight.flatten(1)).reshape(weight.shape)


def _with_stride_one(kernel: Tensor, stride: Sequence[int], dilation: Sequence[int]) -> Tensor:
    """A kernel whose convolution with stride 1 has the same norm.

    A strided convolution is a convolution with stride 1 of the phases of the image, one channel for each phase.
    Dilation of a kernel with stride 1 only rescales the frequencies of its Fourier transform.

    Args:
        kernel: The kernel, ``[groups, out, in, *taps]``.
        stride: Stride in each dimension of the image.
        dilation: Dilation in each dimension of the image.
    """
    for axis, (step, gap) in enumerate(zip(stride, dilation, strict=True), start=3):
        if step > 1:
            places = gap * torch.arange(kernel.shape[axis], device=kernel.device)
            before, after = kernel.shape[:axis], kernel.shape[axis + 1 :]
            count = gap * (kernel.shape[axis] - 1) // step + 1
            spread = kernel.new_zeros(*before, count * step, *after).index_copy(axis, places, kernel)
            kernel = spread.reshape(*before, count, step, *after).movedim(axis + 1, 3).flatten(2, 3)
    return kernel


def _gram_iteration(matrices: Tensor) -> Tensor:
    """Upper bounds on spectral norms: the 2^t-th root of the Frobenius norm of (A^* A)^(2^(t - 1)) tends to ||A||_2."""
    if matrices.shape[-2] < matrices.shape[-1]:
        matrices = matrices.mH  # the smaller of the two Gram matrices
    matrices = matrices.resolve_conj().contiguous()
    tiny = torch.finfo(matrices.real.dtype).tiny
    log_scale = matrices.real.new_zeros(matrices.shape[:-2])
    for _ in range(_SQUARINGS):
        size = _frobenius_norm(matrices).clamp_min(tiny)
        matrices = matrices / size[..., None, None]
        log_scale = 2 * (log_scale + size.log())
        matrices = matrices.mH @ matrices
    size = _frobenius_norm(matrices).clamp_min(tiny)
    norm: Tensor = ((log_scale + size.log()) / 2**_SQUARINGS).exp()
    return norm


def _frobenius_norm(matrices: Tensor) -> Tensor:
    # On a CPU, PyTorch's norm of complex numbers takes far longer than that of their real and imaginary parts.
    norm: Tensor = torch.linalg.vector_norm(torch.view_as_real(matrices), dim=(-3, -2, -1))
    return norm
