"""A reference solver of the adjoint equation, to working precision."""

from dataclasses import replace

from rbp_lightning.agreement import everywhere
from rbp_lightning.errors import check_count
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.dense import Dense, rounding_tol
from rbp_lightning.linear.gmres import GMRES
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector

RESTART = 100
"""Maximum dimension of the Krylov space of GMRES."""


class Direct(LinearSolver):
    """Solves the adjoint equation to working precision, as a reference for other solvers.

    It uses ``Dense`` for samples of up to ``dense_size`` elements, and ``GMRES`` with a large Krylov space for larger
    ones.

    Args:
        dense_size: Maximum number of elements of a sample for a dense solution, at least 0.
        max_products: Maximum number of products with J^T for GMRES, at least 1.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> Direct().solve(operator, [torch.ones(2)]).vector
        [tensor([2., 2.])]
    """

    def __init__(self, dense_size: int = 512, max_products: int = 5000) -> None:
        self.dense_size = check_count(self, "dense_size", dense_size, 0)
        self.max_products = check_count(self, "max_products", max_products, 1)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Solves by QR or by GMRES; ``start`` is ignored."""
        if everywhere(operator.size <= self.dense_size):
            return Dense(self.dense_size).solve(operator, gradient)
        steps = max(1, self.max_products * RESTART // (RESTART + 1))  # a restart costs a product as well
        solution = GMRES(steps, 10 * operator.epsilon, RESTART).solve(operator, gradient)
        return replace(solution, tol=rounding_tol(operator), known=None)
