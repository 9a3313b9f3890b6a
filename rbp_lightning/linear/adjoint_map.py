"""The interface of products with J^T."""

from abc import ABC, abstractmethod

from torch import Tensor

from rbp_lightning.linear.relative_residual import RelativeResidual
from rbp_lightning.pytree import Vector, subtract


class AdjointMap(ABC):
    """Products with J^T, or approximations of them.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        per_leaf: Whether a residual is the largest of the leaves' relative residuals, or one over all leaves.
        epsilon: Relative precision of a product.
        products: Number of products taken.
    """

    batch_dims: int
    per_leaf: bool
    epsilon: float
    products: int

    @abstractmethod
    def vjp(self, cotangent: Vector) -> list[Tensor]:
        """The product J^T v.

        Args:
            cotangent: Leaves of v.

        Returns:
            Leaves of J^T v, in the dtypes of v.
        """

    def adjoint_residual(self, gradient: Vector, adjoint: Vector) -> Tensor:
        """Relative residual of (I - J^T) z = g, per sample; see ``RelativeResidual``.

        Args:
            gradient: Leaves of g.
            adjoint: Leaves of z.
        """
        residual = subtract(gradient, subtract(adjoint, self.vjp(adjoint)))
        return RelativeResidual(gradient, self.batch_dims, self.per_leaf)(residual, adjoint)
