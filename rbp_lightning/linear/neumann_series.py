"""The truncated Neumann series."""

from rbp_lightning.errors import check_count
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.series import sum_of_terms
from rbp_lightning.pytree import Vector


class NeumannSeries(LinearSolver):
    """The truncated Neumann series z = sum over k = 0..K of (J^T)^k g (paper, algorithm 2).

    The error is at most ||(I - J)^-1|| ||J||^(K + 1) ||g||; the solution has the estimate of ``truncation_error``.

    Args:
        steps: K, the number of products with J^T; the sum has K + 1 terms.

    Raises:
        UserError: If ``steps`` is not an integer of at least 0.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> NeumannSeries(steps=2).solve(operator, [torch.ones(2)]).vector
        [tensor([1.7500, 1.7500])]
    """

    def __init__(self, steps: int = 20) -> None:
        self.steps = check_count(self, "steps", steps, 0)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Sums the terms."""
        before, current = operator.products, operator

        def next_term(term: Vector) -> Vector:
            nonlocal current
            current = self.next_operator(current)
            return current.vjp(term)

        total, residual, estimate = sum_of_terms(next_term, gradient, self.steps, operator)
        operator.products = current.products
        return LinearSolution(total, self.steps, current.products - before, residual, error_estimate=estimate)

    def next_operator(self, operator: JacobianOperator) -> JacobianOperator:
        """The operator of the next product: always the same one.

        Args:
            operator: The operator of the last product.
        """
        return operator
