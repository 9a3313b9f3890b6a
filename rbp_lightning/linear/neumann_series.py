"""The truncated Neumann series."""

from rbp_lightning.errors import check_count
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.series import sum_of_terms
from rbp_lightning.pytree import Vector


class NeumannSeries(LinearSolver):
    """The truncated Neumann series z = sum over k = 0..K of (J^T)^k g (paper, algorithm 2).

    The error is at most ||(I - J)^-1|| ||J||^(K + 1) ||g||; the solution says what ``truncation_error`` makes of it.

    Args:
        steps: K, the number of products with J^T; the sum has K + 1 terms.

    Raises:
        UserError: If ``steps`` is negative or not a whole number.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> NeumannSeries(steps=2).solve(operator, [torch.ones(2)]).vector
        [tensor([1.7500, 1.7500])]
    """

    def __init__(self, steps: int = 20) -> None:
        self.steps = check_count(self, "steps", steps, 0)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Sums the first terms."""
        before, tape = operator.products, operator

        def next_term(term: Vector) -> Vector:
            nonlocal tape
            tape = self.next_tape(tape)
            return tape.vjp(term)

        total, residual, estimate = sum_of_terms(next_term, gradient, self.steps, operator)
        operator.products = tape.products
        return LinearSolution(total, self.steps, tape.products - before, residual, error_estimate=estimate)

    def next_tape(self, operator: JacobianOperator) -> JacobianOperator:
        """What the next product is taken with: the same tape each time.

        Args:
            operator: What the last one was taken with.
        """
        return operator
