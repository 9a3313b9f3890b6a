"""The exact adjoint, as a reference."""

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.direct import Direct
from rbp_lightning.solvers import FixedPointSolver


class ExactAdjoint(Implicit):
    """Solves the adjoint equation to working precision, as a reference for other estimators.

    The accuracy of the gradient is limited only by that of the forward solve. See ``Direct`` for the method.

    Args:
        dense_size: Maximum number of elements of a sample for a dense solution, at least 0.
        max_products: Maximum number of products with J^T for GMRES, which is used for larger samples, at least 1.
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        >>> estimator = ExactAdjoint(solver=Picard(tol=1e-14))
        >>> estimator(lambda h: weight * h + 1, torch.zeros((), dtype=torch.float64)).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.0000, dtype=torch.float64)
    """

    def __init__(self, dense_size: int = 512, max_products: int = 5000, solver: FixedPointSolver | None = None) -> None:
        super().__init__(Direct(dense_size, max_products), solver)
        self.dense_size, self.max_products = dense_size, max_products
