"""Conjugate gradients, for symmetric Jacobians."""

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
"""Cosine of the angle between two residuals, which is 0 for a symmetric J, at which a sample goes no further."""


class _CG(Recurrence):
    direction: Tensor
    previous: Tensor  # residual
    square: Tensor  # of its norm

    def __init__(self, operator: JacobianOperator, gradient: Vector, start: Vector | None) -> None:
        super().__init__(operator, gradient, start)
        self.asymmetric = self.indefinite = self.residual.new_zeros(operator.batch_shape, dtype=torch.bool)

    def advance(self, active: Tensor) -> Tensor:
        square = vecdot(self.residual, self.residual)
        if self.begins:
            self.direction = self.residual
        else:
            overlap = vecdot(self.residual, self.previous)
            leaning = overlap.square() > COSINE**2 * square * self.square
            self.asymmetric = self.asymmetric | (active & leaning)
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

    J is symmetric where F is the gradient of a function: an energy's (Hopfield networks), a loss's (training by
    gradient descent). With eigenvalues below 1, as at a fixed point that Picard iteration finds, I - J is positive
    definite as well. A step costs one product with J^T, and as many as the square root of the condition of I - J are
    needed, where ``NormalCG`` needs as many as the condition itself, of twice the cost.

    A sample goes no further once I - J is found indefinite, or J far from symmetric, since residuals are not
    orthogonal. Where a sample does not converge, two more products with J^T tell whether its J is symmetric at all:
    ``v . J^T J^T v`` is then ``||J^T v||^2``. What was found is reported.

    Args:
        steps: Most steps, at least 1.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``steps``. Samples rest at 0.9 of it,
            since the updated residual differs from the true one by rounding.
        check_every: Steps between two convergence checks.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> ConjugateGradient(steps=5).solve(operator, [torch.ones(2)]).vector
        [tensor([2., 2.])]
    """

    def begin(self, operator: JacobianOperator, gradient: Vector, start: Vector | None) -> Recurrence:
        """The recurrence of the solve."""
        return _CG(operator, gradient, start)

    def finish(self, recurrence: Recurrence, solution: LinearSolution) -> LinearSolution:
        """Reports the samples that conjugate gradients are not for."""
        if everywhere(solution.converged):
            return solution
        assert isinstance(recurrence, _CG)
        operator = recurrence.operator
        before = operator.products
        _explain(operator, ~(solution.residual <= self.tol), recurrence)
        return replace(solution, products=solution.products + operator.products - before)


def _explain(operator: JacobianOperator, failed: Tensor, recurrence: _CG) -> None:
    """Reports which of the samples that have not converged are none for conjugate gradients."""
    # Rounding alone, of many steps in low precision, makes residuals lean as well.
    asymmetric = failed & is_asymmetric(operator)
    indefinite = failed & recurrence.indefinite & ~asymmetric
    reasons = {"J is not symmetric": asymmetric, "I - J has an eigenvalue that is not positive": indefinite}
    counts = {reason: count_of(flags) for reason, flags in reasons.items()}
    found = [f"{reason} in {count} of {samples} samples" for reason, (count, samples) in counts.items() if count]
    if found:
        report(
            Failure.NOT_POSITIVE_DEFINITE, f"ConjugateGradient: {' and '.join(found)}, so it does not converge there"
        )
