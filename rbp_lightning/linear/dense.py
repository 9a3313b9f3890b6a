"""A dense solver of the adjoint equation."""

import math

import torch

from rbp_lightning.agreement import same_everywhere
from rbp_lightning.errors import UserError, check_count
from rbp_lightning.linear.back_substitution import solve_by_qr
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector


class Dense(LinearSolver):
    """Solves by a QR decomposition of the matrix I - J^T of each sample (Golub and Van Loan, 2013, section 5.3.3).

    Forming the matrices takes as many products with J^T as a sample has elements: for small states, and as a reference.

    Args:
        max_size: Maximum number of elements of a sample, at least 1; a larger state is an error.

    Raises:
        UserError: If ``max_size`` is out of its range, a sample has more elements, or processes that share an update
            have samples of different sizes.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> Dense().solve(operator, [torch.ones(2)]).vector
        [tensor([2., 2.])]
    """

    def __init__(self, max_size: int = 4096) -> None:
        self.max_size = check_count(self, "max_size", max_size, 1)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Forms the matrices and solves; ``start`` is ignored."""
        if not same_everywhere(operator.size):
            raise UserError(
                "Dense: the processes that share the update have samples of different sizes, and would take different "
                "numbers of products: use GMRES(), or samples of one size."
            )
        if operator.size > self.max_size:
            raise UserError(
                f"Dense: max_size={self.max_size}, but a sample has {operator.size} elements: use GMRES(), or increase "
                "max_size if as many products, and matrices of that size, are affordable."
            )
        before = operator.products
        right = operator.ravel(gradient)
        matrix = torch.eye(operator.size, dtype=right.dtype, device=right.device) - operator.dense().mT
        vector = operator.unravel(solve_by_qr(matrix, right))
        residual = operator.adjoint_residual(gradient, vector)
        products = operator.products - before
        return LinearSolution(vector, products, products, residual, rounding_tol(operator))


def rounding_tol(operator: JacobianOperator) -> float:
    """Relative residual of a solution to working precision, which grows with the dimension."""
    return 100 * operator.epsilon * math.sqrt(operator.size)
