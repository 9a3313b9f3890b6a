"""What the adjoint equation is iterated with."""

from abc import ABC, abstractmethod

from torch import Tensor

from rbp_lightning.linear.relative_residual import RelativeResidual
from rbp_lightning.pytree import Vector, subtract


class AdjointMap(ABC):
    """Products with J^T, or what stands for them.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        per_leaf: Whether residuals are those of each leaf by itself, of which the worst counts.
        epsilon: Relative precision of a product.
        products: How many products were taken.
    """

    batch_dims: int
    per_leaf: bool
    epsilon: float
    products: int

    @abstractmethod
    def vjp(self, cotangent: Vector) -> list[Tensor]:
        """Product J^T v.

        Args:
            cotangent: Leaves of v.

        Returns:
            Leaves of J^T v, in the dtypes of v.
        """

    def adjoint_residual(self, gradient: Vector, adjoint: Vector) -> Tensor:
        """How far z is from solving (I - J^T) z = g, per sample, as ``RelativeResidual`` has it.

        Args:
            gradient: Leaves of g.
            adjoint: Leaves of z.
        """
        residual = subtract(gradient, subtract(adjoint, self.vjp(adjoint)))
        return RelativeResidual(gradient, self.batch_dims, self.per_leaf)(residual, adjoint)
