"""The residual of the adjoint equation, relative to its right-hand side."""

import torch
from torch import Tensor

from rbp_lightning.pytree import Vector, leaf_norms, norm


class RelativeResidual:
    """Norms of residuals g - (I - J^T) z, each relative to the norm of g; as they are where g is 0.

    Of a state of several leaves, each by itself, it is the largest of the leaves'. A leaf's is relative to the larger
    of the norms of its g and its z, at most to the norm of the whole g, so that a large leaf hides no small one. Where
    its g is 0, as of a leaf that the loss does not depend on, its z may be rounding, and it is relative to the whole.

    Args:
        gradient: Leaves of g.
        batch_dims: The number of leading dimensions that index independent samples.
        per_leaf: Whether to take each leaf by itself.

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
        """Relative norm of a residual, per sample.

        Args:
            residual: Leaves of the residual.
            adjoint: Leaves of z.
        """
        if self._sizes is None:
            return norm(residual, self._batch_dims) / self._divisor
        scale = torch.maximum(self._sizes, leaf_norms(adjoint, self._batch_dims)).minimum(self._divisor)
        scale = torch.where(self._sizes == 0, self._divisor, scale)
        return (leaf_norms(residual, self._batch_dims) / scale).amax(dim=0)
