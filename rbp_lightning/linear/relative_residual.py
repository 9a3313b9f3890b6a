"""The residual of the adjoint equation, relative to its right-hand side."""

import torch
from torch import Tensor

from rbp_lightning.pytree import Vector, leaf_norms, norm


class RelativeResidual:
    """Computes ||g - (I - J^T) z|| / ||g|| per sample; the absolute residual where g is 0.

    With ``per_leaf`` it is the largest relative residual of the leaves, so that a large leaf does not hide a small one.
    That of a leaf is relative to the larger of the norms of its g and its z, but at most to the norm of the whole g. If
    the g of a leaf is 0, because the loss does not depend on it, its z may only be rounding error, and its residual is
    relative to the whole g.

    Args:
        gradient: Leaves of g.
        batch_dims: The number of leading dimensions that index independent samples.
        per_leaf: Whether to treat each leaf separately.

    Example:
        >>> relative = RelativeResidual([torch.tensor(1e8), torch.tensor(1.0)], batch_dims=0, per_leaf=True)
        >>> relative([torch.tensor(1.0), torch.tensor(0.5)], [torch.tensor(1e8), torch.tensor(0.5)])
        tensor(0.5000)
    """

    def __init__(self, gradient: Vector, batch_dims: int, per_leaf: bool) -> None:
        self.size = norm(gradient, batch_dims)
        self._divisor = self.size + (self.size == 0)
        self._batch_dims = batch_dims
        self._sizes = leaf_norms(gradient, batch_dims) if per_leaf and len(gradient) > 1 else None

    def __call__(self, residual: Vector, adjoint: Vector) -> Tensor:
        """The relative residual, per sample.

        Args:
            residual: Leaves of g - (I - J^T) z.
            adjoint: Leaves of z.
        """
        if self._sizes is None:
            return norm(residual, self._batch_dims) / self._divisor
        scale = torch.maximum(self._sizes, leaf_norms(adjoint, self._batch_dims)).minimum(self._divisor)
        scale = torch.where(self._sizes == 0, self._divisor, scale)
        return (leaf_norms(residual, self._batch_dims) / scale).amax(dim=0)
