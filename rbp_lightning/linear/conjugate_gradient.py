"""The conjugate gradient method, for symmetric Jacobians."""

from dataclasses import replace

import torch
from torch import Tensor
from torch.linalg import vecdot

from rbp_lightning.agreement import count_of, everywhere
from rbp_lightning.failures import Failure
from rbp_lightning.linear.base import LinearSolution
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.recurrence import Recurrence, RecurrentSolver
from rbp_lightning.linear.symmetry import is_asymmetric
from rbp_lightning.pytree import Vector
from rbp_lightning.reporting import report

COSINE = 0.1
"""Cosine of the angle between two successive residuals, 0 for a symmetric J, above which a sample stops."""


class _CG(Recurrence):
    direction: Tensor
    previous: Tensor  # the previous residual
    square: Tensor  # its squared norm

    def __init__(self, operator: JacobianOperator, gradient: Vector, start: Vector | None) -> None:
        super().__init__(operator, gradient, start)
        self.asymmetric = self.indefinite = self.residual.new_zeros(operator.batch_shape, dtype=torch.bool)

    def advance(self, active: Tensor) -> Tensor:
        square = vecdot(self.residual, self.residual)
        if self.begins:
            self.direction = self.residual
        else:
            overlap = vecdot(self.residual, self.previous)
            not_orthogonal = overlap.square() > COSINE**2 * square * self.square
            self.asymmetric = self.asymmetric | (active & not_orthogonal)
            ratio = torch.where(self.square != 0, square / self.square, 0)
            self.direction = torch.addcmul(self.residual, ratio[..., None], self.direction)
        self.square, self.previous = square, self.residual
        image = self.product(self.direction)
        curvature = vecdot(self.direction, image)
        self.indefinite = self.indefinite | (active & (curvature <= 0))
        able = ~(self.indefinite | self.asymmetric)
        self.move(torch.where(active & able, square / curvature, 0), self.direction, image)
        return able


class ConjugateGradient(RecurrentSolver):
    """Conjugate gradients for a symmetric positive definite I - J (Saad, 2003, algorithm 6.18).

    J is symmetric if F is a gradient step on an energy (Hopfield networks) or a loss (training by gradient descent).
    If its eigenvalues are below 1, as at a fixed point that Picard iteration finds, I - J is also positive definite. A
    step costs one product with J^T. The number of steps grows with the square root of the condition number of I - J;
    that of ``NormalCG`` grows with the condition number, at twice the cost per step.

    A sample stops once I - J is found to be indefinite, or J far from symmetric because successive residuals are not
    orthogonal. If a sample does not converge, two more products with J^T test whether its J is symmetric:
    ``v . J^T J^T v`` is then ``||J^T v||^2``. The findings are reported.

    Args:
        steps: Maximum number of steps, at least 1.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``steps`` steps. A sample stops at 0.9
            ``tol``, since the residual of the recurrence differs from the true one by rounding.
        check_every: Steps between two convergence checks.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> ConjugateGradient(steps=5).solve(operator, [torch.ones(2)]).vector
        [tensor([2., 2.])]
    """

    def begin(self, operator: JacobianOperator, gradient: Vector, start: Vector | None) -> Recurrence:
        """Starts the recurrence of a solve."""
        return _CG(operator, gradient, start)

    def finish(self, recurrence: Recurrence, solution: LinearSolution) -> LinearSolution:
        """Reports samples for which I - J is not symmetric positive definite."""
        if everywhere(solution.converged):
            return solution
        assert isinstance(recurrence, _CG)
        operator = recurrence.operator
        before = operator.products
        _report_unsuitable(operator, ~(solution.residual <= self.tol), recurrence)
        return replace(solution, products=solution.products + operator.products - before)


def _report_unsuitable(operator: JacobianOperator, failed: Tensor, recurrence: _CG) -> None:
    """Reports the failed samples for which I - J is not symmetric positive definite."""
    # In low precision, rounding alone can make residuals non-orthogonal after many steps.
    asymmetric = failed & is_asymmetric(operator)
    indefinite = failed & recurrence.indefinite & ~asymmetric
    reasons = {"J is not symmetric": asymmetric, "I - J has an eigenvalue that is not positive": indefinite}
    counts = {reason: count_of(flags) for reason, flags in reasons.items()}
    found = [f"{reason} in {count} of {samples} samples" for reason, (count, samples) in counts.items() if count]
    if found:
        report(
            Failure.NOT_POSITIVE_DEFINITE, f"ConjugateGradient: {' and '.join(found)}, so it does not converge there"
        )
