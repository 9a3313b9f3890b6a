"""Bounds on the norm of a weight that make an update a contraction.

The bounds are parametrizations for ``torch.nn.utils.parametrize.register_parametrization(linear, "weight", bound)``, of
updates Z <- phi(W Z A) + U. Features are in rows and nodes in columns (a Linear layer has them the other way round,
with the same W), phi acts on each entry with slopes of at most 1, and A, if any, is constant. Two states end up at most
||W|| ||A|| times as far apart, so this is a contraction where ||W|| < 1 and ||A|| <= 1; the classes say in which norms.
Every reading of a parametrized weight computes it anew: ``held`` computes it once a solve, as ``FixedPointLayer`` does.
"""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from rbp_lightning.errors import UserError, check_instance, check_number
from rbp_lightning.pytree import FLOATS, to_float32


class NormBound(nn.Module):
    """What the bounds share: the checks, and at least float32 to compute in.

    Args:
        bound: Largest norm, above 0.

    Raises:
        UserError: If ``bound`` is not a positive number.
    """

    def __init__(self, bound: float) -> None:
        super().__init__()
        self.bound = check_number(self, "bound", bound, 0.0, low_allowed=False)

    def forward(self, weight: Tensor) -> Tensor:
        """Brings a weight within the bound, up to rounding in its dtype.

        Raises:
            UserError: If ``weight`` is not what the bound is for.
        """
        self.check(weight)
        return self._bounded(*to_float32([weight])).to(weight.dtype)

    def check(self, weight: Tensor) -> None:
        """Refuses what is no floating-point matrix.

        Args:
            weight: The weight.

        Raises:
            UserError: If it is none.
        """
        self._check_kind(weight, "a matrix", lambda dims: dims == 2)

    def _check_kind(self, weight: Tensor, kind: str, fits: Callable[[int], bool]) -> None:
        check_instance(self, "weight", weight, Tensor, kind)
        if not fits(weight.dim()) or weight.dtype not in FLOATS or weight.layout is not torch.strided:
            raise UserError(
                f"{type(self).__name__}: weight has shape {tuple(weight.shape)}, dtype {weight.dtype} and layout "
                f"{weight.layout}: it must be {kind}, dense and in floating point."
            )

    def _check_kernel(self, weight: Tensor) -> None:
        self._check_kind(weight, "the kernel of a convolution", lambda dims: dims >= 3)

    def _bounded(self, weight: Tensor) -> Tensor:
        raise NotImplementedError

    def _scaled(self, weight: Tensor, norm: Tensor) -> Tensor:
        # Within the bound this divides by exactly 1, and never by a norm, which may be 0.
        return weight / (norm / self.bound).clamp_min(1)

    def extra_repr(self) -> str:
        """The bound, for ``repr``."""
        return f"bound={self.bound:g}"


class SpectralNormBound(NormBound):
    """Parametrization W min(1, bound / ||W||_2): the largest singular value is at most the bound.

    With ||A||_2 <= 1, as of the symmetric normalisation of an adjacency matrix, Z <- phi(W Z A) + U is a contraction
    in the Frobenius norm of Z if the bound is below 1. The singular value is computed and not, as by PyTorch's own
    ``spectral_norm``, estimated by power iteration, which comes from below and hence bounds nothing. The bound holds
    up to rounding.

    Args:
        bound: Largest norm, above 0. A matrix within it is not changed.

    Raises:
        UserError: If ``bound`` is not a positive number.

    Example:
        >>> SpectralNormBound(1.0)(torch.tensor([[4.0, 0.0], [0.0, 2.0]]))
        tensor([[1.0000, 0.0000],
                [0.0000, 0.5000]])
    """

    def _bounded(self, weight: Tensor) -> Tensor:
        # Of NaN there are no singular values. The bounded matrix is NaN then, which the solve reports.
        finite = weight.isfinite().all()
        norm = torch.linalg.matrix_norm(torch.where(finite, weight, 0), 2)
        return self._scaled(weight, torch.where(finite, norm, float("nan")))


class FrobeniusNormBound(NormBound):
    """Parametrization W min(1, bound / ||W||_F): the root of the sum of squares is at most the bound.

    As ||W||_2 <= ||W||_F, it makes the same updates contractions as ``SpectralNormBound``. It is cheaper and stricter:
    n equal singular values come out as bound / sqrt(n) each. EIGNN (Liu et al., NeurIPS 2021) bounds its weight by the
    Frobenius norm too, in another form. The bound holds up to rounding.

    Args:
        bound: Largest norm, above 0. A matrix within it is not changed.

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
    """Parametrization by the nearest matrix whose rows have absolute sums of at most the bound: ||W||_inf <= bound.

    With absolute column sums of A of at most 1, Z <- phi(W Z A) + U is a contraction in the largest |Z_ij| if the bound
    is below 1. A nonnegative A needs only some v > 0 with v A <= v, as the symmetric normalisation of an adjacency
    matrix has: the contraction is then in the largest |Z_ij| / v_j. This is the projection of IGNN (Gu et al., NeurIPS
    2020, arXiv 2009.06211, section 4), each row onto an l1 ball by sorting (Duchi et al., ICML 2008), but gradients go
    through it: entries that it sets to 0 get none. The bound holds up to rounding.

    Args:
        bound: Largest norm, above 0. A row within it is not changed.

    Raises:
        UserError: If ``bound`` is not a positive number.

    Example:
        >>> InfinityNormBound(1.0)(torch.tensor([[2.0, -1.5, 0.1], [0.3, 0.3, 0.3]]))
        tensor([[ 0.7500, -0.2500,  0.0000],
                [ 0.3000,  0.3000,  0.3000]])
    """

    def _bounded(self, weight: Tensor) -> Tensor:
        size = weight.abs()
        # All sizes of a row are lowered by the same amount, down to 0 at most, so that their sum is the bound. Sizes
        # are measured from the largest, as rounding errors of large ones can exceed the bound: the largest is to
        # become what the k largest, lowered so that they make up the bound, leave of it, for the k with the least.
        below = size.amax(1, keepdim=True) - size
        counts = torch.arange(1, size.shape[1] + 1, dtype=size.dtype, device=size.device)
        largest = ((below.sort(dim=1).values.cumsum(1) + self.bound) / counts).amin(1, keepdim=True)
        lowered = weight.sign() * torch.relu(largest - below)
        # A choice and no clamp: an entry of 0 in a row within the bound has to pass its gradient on.
        return torch.where(size.sum(1, keepdim=True) > self.bound, lowered, weight)
