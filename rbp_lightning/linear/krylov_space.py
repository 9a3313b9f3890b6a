"""The Krylov space of a GMRES cycle, and the smallest residual in it."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from rbp_lightning.linear.back_substitution import back_substitution

ROUNDING = 10
"""After orthogonalisation, a vector of at most this many units of the precision is 0 up to rounding."""


class KrylovSpace:
    """An orthonormal basis v_1, v_2, ... of span(r, A r, A^2 r, ...), for each sample independently.

    It uses Arnoldi's method with classical Gram-Schmidt, applied twice, so that one matrix product gives all
    coefficients of a step (Saad, 2003, sections 6.3 and 6.5): A V_k = V_(k+1) H with a Hessenberg matrix H.

    The smallest residual r - A V_k c is V_(k+1) y beta / ||y||^2 with y^T H = 0, y_1 = 1 and beta = ||r||. Its norm is
    beta / ||y||, and each column of H adds one entry to y, so that no rotations are needed (Ayachour, A fast
    implementation for GMRES method, J. Comput. Appl. Math. 159, 2003). The orthogonal factor of H = Q R follows from y
    as well.

    A sample becomes inactive, and its further basis vectors 0, when its residual is small enough or the space is
    invariant and contains the solution, unless A is singular (Saad, 2003, proposition 6.10).

    Args:
        like: Vectors of the same shape and dtype, ``[*batch, size]``.
        max_steps: Maximum number of steps; there is one more basis vector.
        target: Relative residual at which a sample becomes inactive.

    Attributes:
        steps: Number of steps taken since ``begin``.
    """

    def __init__(self, like: Tensor, max_steps: int, target: float) -> None:
        self._shape, self._target = like.shape, target
        precision = torch.finfo(like.dtype)
        self._epsilon, self._tiny = precision.eps, precision.tiny
        count, size = like.shape[:-1].numel(), like.shape[-1]
        self._basis = like.new_empty(count, max_steps + 1, size)
        self._hessenberg = like.new_zeros(count, max_steps + 1, max_steps)
        self._null = like.new_ones(count, max_steps + 1)  # y

    def begin(self, residual: Tensor, relative: Tensor, active: Tensor) -> None:
        """Starts a new basis.

        Args:
            residual: r.
            relative: Relative norm of r, per sample.
            active: The samples that are active at the start.
        """
        self.steps = 0
        self._relative, self._active = relative.reshape(-1), active.reshape(-1)
        self._square = torch.ones_like(self._relative)  # of the norm of y
        # A reduction of the residual beyond the precision would only be rounding.
        self._max_square = (self._target / self._relative).clamp_min(self._epsilon) ** -2
        flat = residual.reshape(-1, self._shape[-1])
        self._beta = vector_norm(flat, dim=-1)
        self._append(flat, self._beta.clamp_min(self._tiny))

    def extend(self, product: Callable[[Tensor], Tensor]) -> None:
        """Takes a step.

        Args:
            product: Computes A v for one vector per sample.
        """
        step = self.steps
        basis = self._basis[:, : step + 1]
        image = product(self._newest.reshape(self._shape)).reshape(-1, self._shape[-1])
        rounding = vector_norm(image, dim=-1) * (ROUNDING * self._epsilon)
        # As rows: a CPU subtracts combinations of rows ten times as fast as of columns.
        vector = image[:, None]
        overlap = torch.bmm(vector, basis.mT)
        vector = torch.baddbmm(vector, overlap, basis, alpha=-1)
        again = torch.bmm(vector, basis.mT)
        vector = torch.baddbmm(vector, again, basis, alpha=-1).squeeze(1)
        column = (overlap + again).squeeze(1)
        length = vector_norm(vector, dim=-1)
        # Never 0, so that y stays finite; almost 0 for an inactive sample, whose column is 0.
        below = torch.maximum(length, rounding).clamp_min(self._tiny)
        entry = vecdot(self._null[:, : step + 1], column).div(below).neg()
        self._hessenberg[:, : step + 1, step] = column
        self._hessenberg[:, step + 1, step] = below
        self._null[:, step + 1] = entry
        self._square = torch.addcmul(self._square, entry, entry)
        self._active = self._active & (length > rounding) & (self._square < self._max_square)
        self.steps = step + 1
        self._append(vector, below)

    def _append(self, vector: Tensor, length: Tensor) -> None:
        self._newest = self._basis[:, self.steps] = vector * (self._active / length)[:, None]

    def relative_residual(self) -> Tensor:
        """Relative norm of the smallest residual, per sample; 0 for inactive samples."""
        return torch.where(self._active, self._relative * self._square.rsqrt(), 0)

    def correction(self) -> Tensor:
        """The V_k c with the smallest residual r - A V_k c, ``[*batch, size]``."""
        steps = self.steps
        null, hessenberg = self._null[:, : steps + 1], self._hessenberg[:, : steps + 1, :steps]
        # Row j of Q^T is orthogonal to the first j + 1 entries of y and in the span of the first j + 1 unit vectors: it
        # has the first j entries of y times the next one, and then minus the sum of their squares.
        norms = null.square().cumsum(dim=-1).sqrt()
        before, after = norms[:, :-1], norms[:, 1:]
        rows = ((null[:, 1:] / (before * after))[..., None] * null[:, None]).tril()
        rows.diagonal(offset=1, dim1=-2, dim2=-1).copy_(-before / after)
        coefficients = back_substitution(rows @ hessenberg, self._beta[:, None] * rows[..., 0])
        return (coefficients[:, None] @ self._basis[:, :steps]).reshape(self._shape)
