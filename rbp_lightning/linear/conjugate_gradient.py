"""Conjugate gradients on the normal equations."""

import torch

from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_count, check_number
from rbp_lightning.linear.base import LinearSolution, LinearSolver, rounding_floors
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.relative_residual import RelativeResidual
from rbp_lightning.pytree import Vector, add, inner, scale, subtract
from rbp_lightning.status import Status


class ConjugateGradient(LinearSolver):
    """Conjugate gradients on (I - J)(I - J^T) z = (I - J) g (paper, section 3.2).

    The normal equations are positive definite whatever J is, as long as 1 is no eigenvalue of it. This is the CGLS form
    (Bjorck, Numerical Methods for Least Squares Problems, 1996, algorithm 7.4.1), which updates the residual of the
    equation itself instead of that of the normal equations: it loses fewer digits, and the norm of the residual over
    all leaves falls with every step. Samples advance side by side, each with step lengths of its own, and rest once
    they have converged. A step costs one product with J and one with J^T.

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

    def __init__(self, steps: int = 20, tol: float = 1e-4, check_every: int = 10) -> None:
        self.steps = check_count(self, "steps", steps, 1)
        self.tol = check_number(self, "tol", tol, 0.0)
        self.check_every = check_count(self, "check_every", check_every, 1)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Takes steps until every sample has converged or ``steps`` are spent."""
        batch_dims, before = operator.batch_dims, operator.products
        solution: Vector = [torch.zeros_like(leaf) for leaf in gradient] if start is None else start
        residual = gradient if start is None else subtract(gradient, subtract(start, operator.vjp(start)))
        direction = normal = subtract(residual, operator.jvp(residual))
        normal_square = inner(normal, normal, batch_dims)
        relative = RelativeResidual(gradient, batch_dims, operator.per_leaf)
        left = relative(residual, solution)
        # Below rounding there is nothing left to divide by.
        rest = max(0.9 * self.tol, operator.epsilon)
        schedule = CheckSchedule(self.check_every, rest if self.tol > 0 else 0.0, operator.epsilon)
        for step in range(1, self.steps + 1):
            image = subtract(direction, operator.vjp(direction))
            image_square = inner(image, image, batch_dims)
            # Not ``>``: a sample with NaN has to keep it.
            active = ~(left <= rest) & (image_square != 0)
            length = torch.where(active, normal_square / image_square, 0)
            solution = add(solution, scale(length, direction))
            residual = subtract(residual, scale(length, image))
            left = relative(residual, solution)
            check = self.tol > 0 and schedule.should_check(step)
            finished = check and schedule.is_finished(step, left)
            if finished or step == self.steps:
                break
            normal = subtract(residual, operator.jvp(residual))
            previous_square, normal_square = normal_square, inner(normal, normal, batch_dims)
            ratio = torch.where(previous_square != 0, normal_square / previous_square, 0)
            direction = add(normal, scale(ratio, direction))
        # The updated residual does not know of rounding.
        true_residual = operator.adjoint_residual(gradient, solution)
        known = Status.STALLED if schedule.stalled else None
        floor = rounding_floors(gradient, solution, operator) if finished else None
        products = operator.products - before
        return LinearSolution(solution, step, products, true_residual, self.tol, known=known, floor=floor)
