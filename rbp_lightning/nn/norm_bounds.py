"""Bounds on the norm of a weight matrix that make an update a contraction.

The bounds are parametrizations, for ``torch.nn.utils.parametrize.register_parametrization(linear, "weight", bound)``.
They are meant for updates Z <- phi(W Z A) + U, where features are rows and nodes are columns (the other way round for a
Linear layer, with the same W), phi acts elementwise with slopes of at most 1, and A, if any, is constant. The Lipschitz
constant of such an update is at most ||W|| ||A||, so it is a contraction if ||W|| < 1 and ||A|| <= 1; each class states
its norms. A parametrized weight is recomputed whenever it is read, but once per solve with ``held``, which
``FixedPointLayer`` uses.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rbp_lightning.errors import UserError, check_instance, check_number
from rbp_lightning.pytree import FLOATS, to_float32


class NormBound(nn.Module):
    """Base class of the bounds: checks the weight, and computes in float32 at least.

    Args:
        bound: Largest norm, above 0.

    Raises:
        UserError: If ``bound`` is not a positive number.
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = check_number(self, "bound", bound, 0.0, low_allowed=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Returns the weight with its norm within the bound, up to rounding in its dtype.

        Raises:
            UserError: If ``weight`` has the wrong type or shape.
        """
        self.check(weight)
        return self._bounded(*to_float32([weight])).to(weight.dtype)

    def check(self, weight: Tensor) -> None:
        """Checks that the weight is a floating-point matrix.

        Args:
            weight: The weight.

        Raises:
            UserError: If it is not.
        """
        self._check_kind(weight, "a matrix", lambda dims: dims == 2)

    def _check_kind(self, weight: Tensor, kind: str, fits: Callable[[int], bool]) -> None:
        check_instance(self, "weight", weight, Tensor, kind)
        if not fits(weight.dim()) or weight.dtype not in FLOATS or weight.layout is not torch.strided:
            raise UserError(
                f"{type(self).__name__}: weight has shape {tuple(weight.shape)}, dtype {weight.dtype} and layout "
                f"{weight.layout}: it must be {kind}, as a dense floating-point tensor."
            )

    def _check_kernel(self, weight: Tensor) -> None:
        self._check_kind(weight, "the kernel of a convolution", lambda dims: dims >= 3)

    def _bounded(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _scaled(self, weight: Tensor, norm: Tensor) -> Tensor:
        # Divides by exactly 1 within the bound, and never by 0.
        return weight / (norm / self.bound).clamp_min(1)

    def extra_repr(self) -> str:
        """The bound, for ``repr``."""
        return f"bound={self.bound:g}"


class SpectralNormBound(NormBound):
    """Parametrization W min(1, bound / ||W||_2), whose largest singular value is at most the bound.

    With ||A||_2 <= 1, as for a symmetrically normalised adjacency matrix, Z <- phi(W Z A) + U is a contraction in the
    Frobenius norm of Z if the bound is below 1. The singular value is computed exactly up to rounding; PyTorch's
    ``spectral_norm`` estimates it from below by power iteration, and so does not give a bound.

    Args:
        bound: Largest norm, above 0. A matrix within the bound is not changed.

    Raises:
        UserError: If ``bound`` is not a positive number.

    Example:
        >>> SpectralNormBound(1.0)(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
        tensor([[1.0000, 0.0000],
                [0.0000, 0.5000]])
    """

    def _bounded(self, weight: Tensor) -> Tensor:
        # Singular values of NaN raise an error. The result is NaN instead, which the solve reports.
        finite = weight.isfinite().all()
        norm = torch.linalg.matrix_norm(torch.where(finite, weight, 0), 2)
        return self._scaled(weight, torch.where(finite, norm, float("nan")))


class FrobeniusNormBound(NormBound):
    """Parametrization W min(1, bound / ||W||_F), whose Frobenius norm is at most the bound.

    Since ||W||_2 <= ||W||_F, it makes the same updates contractions as ``SpectralNormBound``. It is cheaper and
    stricter: n equal singular values become at most bound / sqrt(n). EIGNN (Liu et al., NeurIPS 2021) also bounds the
    Frobenius norm of its weight, in another form. The bound holds up to rounding.

    Args:
        bound: Largest norm, above 0. A matrix within the bound is not changed.

    Raises:
        UserError: If ``bound`` is not a positive number.

    Example:
        >>> FrobeniusNormBound(1.0)(torch.tensor([[3.0, 0.0], [0.0, 4.0]]))
        tensor([[0.6000, 0.0000],
                [0.0000, 0.8000]])
    """

    def _bounded(self, weight: Tensor) -> Tensor:
        return self._scaled(weight, torch.linalg.matrix_norm(weight))


class InfinityNormBound(NormBound):
    """Parametrization by the nearest matrix with ||W||_inf <= bound: absolute row sums of at most the bound.

    If the absolute column sums of A are at most 1, Z <- phi(W Z A) + U is a contraction in the maximum norm of Z for a
    bound below 1. For a nonnegative A some v > 0 with v A <= v is enough, which a symmetrically normalised adjacency
    matrix has: it is then a contraction in the largest |Z_ij| / v_j. This is the projection of IGNN (Gu et al., NeurIPS
    2020, arXiv 2009.06211, section 4) of each row onto an l1 ball, by sorting (Duchi et al., ICML 2008). Here gradients
    flow through the projection, except for entries that it sets to 0. The bound holds up to rounding.

    Args:
        bound: Largest norm, above 0. A row within the bound is not changed.

    Raises:
        UserError: If ``bound`` is not a positive number.

    Example:
        >>> InfinityNormBound(1.0)(torch.tensor([[2.0, -1.5, 0.1], [0.3, 0.3, 0.3]]))
        tensor([[ 0.7500, -0.2500,  0.0000],
                [ 0.3000,  0.3000,  0.3000]])
    """

    def _bounded(self, weight: Tensor) -> Tensor:
        size = weight.abs()
        # Soft thresholding: all absolute entries of a row are lowered by the same amount, to 0 at least, so that their
        # sum is the bound. If only the k largest remain, the largest becomes (bound + sum of its differences to them)
        # / k; the right k minimises that. Differences from the largest avoid cancellation for large entries.
        below = size.amax(1, keepdim=True) - size
        counts = torch.arange(1, size.shape[1] + 1, dtype=size.dtype, device=size.device)
        largest = ((below.sort(dim=1).values.cumsum(1) + self.bound) / counts).amin(1, keepdim=True)
        lowered = weight.sign() * torch.relu(largest - below)
        # torch.where, so that an entry of 0 in a row within the bound still gets its gradient.
        return torch.where(size.sum(1, keepdim=True) > self.bound, lowered, weight)
