"""The truncated Neumann series of the damped update."""

import torch

from rbp_lightning.errors import check_count, check_number
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.series import sum_of_terms
from rbp_lightning.pytree import Vector


class DampedNeumannSeries(LinearSolver):
    """The truncated damped series z = d * sum over i = 0..k - 1 of ((1 - d) I + d J^T)^i g.

    The full series is the solution, since I - ((1 - d) I + d J^T) = d (I - J^T). Truncating it is a deliberate bias of
    the phantom gradient (Geng et al., On training implicit models, NeurIPS 2021, section 3), so a policy does not act
    on it. The solution still has the estimate of ``truncation_error``.

    Args:
        steps: k, the number of terms, at least 1; they take k - 1 products with J^T.
        damping: d, in (0, 1]; 1 makes it ``NeumannSeries(steps - 1)``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> DampedNeumannSeries(steps=2, damping=0.5).solve(operator, [torch.ones(2)]).vector  # (1 + 0.75) / 2
        [tensor([0.8750, 0.8750])]
    """

    def __init__(self, steps: int = 5, damping: float = 0.5) -> None:
        self.steps = check_count(self, "steps", steps, 1)
        self.damping = check_number(self, "damping", damping, 0.0, 1.0, low_allowed=False)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Sums the terms."""
        before, damping = operator.products, self.damping

        def next_term(term: Vector) -> Vector:
            return [torch.lerp(*pair, damping) for pair in zip(term, operator.vjp(term), strict=True)]

        total, residual, estimate = sum_of_terms(next_term, gradient, self.steps - 1, operator)
        for leaf in total:
            leaf *= damping
        products = operator.products - before
        return LinearSolution(total, self.steps, products, residual, error_estimate=estimate, intended=True)
