"""The Krylov space of one cycle of GMRES, and the least residual in it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from rbp_lightning.linear.back_substitution import back_substitution

ROUNDING = 10
"""What orthogonalisation leaves of a vector is rounding up to so many units of the precision."""


class KrylovSpace:
    """An orthonormal basis v_1, v_2, ... of the space of r, A r, A^2 r, ..., for each sample by itself.

    Arnoldi's method with classical Gram-Schmidt, applied twice, so that all coefficients of a step come from one matrix
    product (Saad, 2003, sections 6.3 and 6.5): A V_k = V_(k+1) H with a Hessenberg matrix H.

    The least residual r - A V_k c is V_(k+1) y beta / ||y||^2 with y^T H = 0 and y_1 = 1, beta = ||r||. So its norm is
    beta / ||y||, y gains an entry with each column of H, and no rotations are needed to know it (Ayachour, A fast
    implementation for GMRES method, J. Comput. Appl. Math. 159, 2003). The orthogonal factor of H = Q R has entries of
    y as well.

    A sample rests, with 0 for its further vectors, where its residual is small enough, or the space is invariant: then
    it holds the solution, unless A is singular (Saad, 2003, proposition 6.10).

    Args:
        like: Vectors like those of the space, ``[*batch, size]``.
        most: Most steps, and so most vectors but one.
        rest: Relative size of the residual at which a sample rests.

    Attributes:
        steps: Steps taken since ``begin``.
    """

    def __init__(self, like: Tensor, most: int, rest: float) -> None:
        self._shape, self._rest = like.shape, rest
        precision = torch.finfo(like.dtype)
        self._epsilon, self._tiny = precision.eps, precision.tiny
        count, size = like.shape[:-1].numel(), like.shape[-1]
        self._basis = like.new_empty(count, most + 1, size)
        self._hessenberg = like.new_zeros(count, most + 1, most)
        self._null = like.new_ones(count, most + 1)  # y

    def begin(self, residual: Tensor, left: Tensor, active: Tensor) -> None:
        """Begins with another r.

        Args:
            residual: r.
            left: Its relative size, per sample.
            active: Which samples do not rest from the start.
        """
        self.steps = 0
        self._left, self._active = left.reshape(-1), active.reshape(-1)
        self._square = torch.ones_like(self._left)  # of the norm of y
        # What reduces the residual by more than the precision has to do with rounding.
        self._most_square = (self._rest / self._left).clamp_min(self._epsilon) ** -2
        flat = residual.reshape(-1, self._shape[-1])
        self._beta = vector_norm(flat, dim=-1)
        self._append(flat, self._beta.clamp_min(self._tiny))

    def extend(self, product: Callable[[Tensor], Tensor]) -> None:
        """Takes a step.

        Args:
            product: A v of one vector per sample.
        """
        step = self.steps
        basis = self._basis[:, : step + 1]
        image = product(self._newest.reshape(self._shape)).reshape(-1, self._shape[-1])
        rounding = vector_norm(image, dim=-1) * (ROUNDING * self._epsilon)
        # As rows, of which a CPU subtracts combinations ten times as fast as of columns.
        rest = image[:, None]
        overlap = torch.bmm(rest, basis.mT)
        rest = torch.baddbmm(rest, overlap, basis, alpha=-1)
        again = torch.bmm(rest, basis.mT)
        rest = torch.baddbmm(rest, again, basis, alpha=-1).squeeze(1)
        column = (overlap + again).squeeze(1)
        length = vector_norm(rest, dim=-1)
        # Never 0, so that y stays finite; next to 0 in a sample that rests, whose column is 0.
        below = torch.maximum(length, rounding).clamp_min(self._tiny)
        entry = vecdot(self._null[:, : step + 1], column).div(below).neg()
        self._hessenberg[:, : step + 1, step] = column
        self._hessenberg[:, step + 1, step] = below
        self._null[:, step + 1] = entry
        self._square = torch.addcmul(self._square, entry, entry)
        self._active = self._active & (length > rounding) & (self._square < self._most_square)
        self.steps = step + 1
        self._append(rest, below)

    def _append(self, vector: Tensor, length: Tensor) -> None:
        self._newest = self._basis[:, self.steps] = vector * (self._active / length)[:, None]

    def left(self) -> Tensor:
        """Relative size of the least residual, per sample; 0 of samples that rest."""
        return torch.where(self._active, self._left * self._square.rsqrt(), 0)

    def correction(self) -> Tensor:
        """V_k c of the least residual r - A V_k c, ``[*batch, size]``."""
        steps = self.steps
        null, hessenberg = self._null[:, : steps + 1], self._hessenberg[:, : steps + 1, :steps]
        # Row j of the transpose of Q is orthogonal to the first j + 1 entries of y and in the span of the first j + 1
        # unit vectors: the first j entries of y times its next one, and minus their square sum.
        norms = null.square().cumsum(dim=-1).sqrt()
        before, after = norms[:, :-1], norms[:, 1:]
        rows = ((null[:, 1:] / (before * after))[..., None] * null[:, None]).tril()
        rows.diagonal(offset=1, dim1=-2, dim2=-1).copy_(-before / after)
        coefficients = back_substitution(rows @ hessenberg, self._beta[:, None] * rows[..., 0])
        return (coefficients[:, None] @ self._basis[:, :steps]).reshape(self._shape)
