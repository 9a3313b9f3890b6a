"""The loop of linear solvers with a short recurrence, which update an iterate and its residual."""

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_count, check_number
from rbp_lightning.linear.base import LinearSolution, LinearSolver, rounding_floors
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.relative_residual import RelativeResidual
from rbp_lightning.linear.verification import Verification
from rbp_lightning.pytree import Vector
from rbp_lightning.status import Status


class Recurrence(ABC):
    """One solve by a short recurrence: the iterate, its residual and the search directions.

    Args:
        operator: Products with J and J^T.
        gradient: Leaves of g.
        start: Leaves of the initial z; ``None`` is 0.

    Attributes:
        solution: z, one vector per sample, ``[*batch, size]``.
        residual: The residual g - (I - J^T) z of the recurrence, which drifts from the true one by rounding.
        begins: Whether the next step is the first one, without a previous direction.
    """

    def __init__(self, operator: JacobianOperator, gradient: Vector, start: Vector | None) -> None:
        self.operator, self.begins = operator, True
        self._relative = RelativeResidual(gradient, operator.batch_dims, operator.per_leaf)
        self._right = operator.ravel(gradient)
        self.solution = torch.zeros_like(self._right) if start is None else operator.ravel(start)
        self.residual = self._right if start is None else self._right - self.product(self.solution)

    def product(self, vector: Tensor) -> Tensor:
        """(I - J^T) v."""
        return vector - self.operator.flat_vjp(vector)

    def relative_residual(self) -> Tensor:
        """The relative residual per sample; see ``RelativeResidual``."""
        return self._relative(self.operator.unravel(self.residual), self.operator.unravel(self.solution))

    def verify(self) -> Tensor:
        """Restarts with the true residual; returns the true relative residual."""
        self.residual, self.begins = self._right - self.product(self.solution), True
        return self.relative_residual()

    @abstractmethod
    def advance(self, active: Tensor) -> Tensor:
        """Takes a step in each active sample.

        Args:
            active: The samples that take a step, of the shape of the batch dimensions.

        Returns:
            The samples that can take another step: those for which the method has not broken down.
        """

    def move(self, length: Tensor, direction: Tensor, image: Tensor) -> None:
        """Moves along a direction, and updates the residual.

        Args:
            length: Step length per sample; 0 leaves a sample unchanged.
            direction: The direction.
            image: (I - J^T) times the direction.
        """
        self.solution = torch.addcmul(self.solution, length[..., None], direction)
        self.residual = torch.addcmul(self.residual, length[..., None], image, value=-1)


class RecurrentSolver(LinearSolver, ABC):
    """A solver with a short recurrence. All samples take steps together, each with its own step lengths.

    If the true residual is above the tolerance at the end, the method restarts with it.

    Args:
        steps: Maximum number of steps, at least 1.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``steps`` steps. A sample stops at 0.9
            ``tol``, since the residual of the recurrence differs from the true one by rounding.
        check_every: Steps between two convergence checks.

    Raises:
        UserError: If an argument is out of its range.
    """

    def __init__(self, steps: int = 100, tol: float = 1e-4, check_every: int = 10) -> None:
        self.steps = check_count(self, "steps", steps, 1)
        self.tol = check_number(self, "tol", tol, 0.0)
        self.check_every = check_count(self, "check_every", check_every, 1)

    @abstractmethod
    def begin(self, operator: JacobianOperator, gradient: Vector, start: Vector | None) -> Recurrence:
        """Starts the recurrence of a solve.

        Args:
            operator: Products with J and J^T.
            gradient: Leaves of g.
            start: Leaves of the initial z; ``None`` is 0.
        """

    def finish(self, recurrence: Recurrence, solution: LinearSolution) -> LinearSolution:
        """Called at the end of a solve, to report failures; returns the solution.

        Args:
            recurrence: The recurrence after its last step.
            solution: The solution.
        """
        return solution

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Takes steps until every sample has converged, at most ``steps``."""
        before = operator.products
        recurrence = self.begin(operator, gradient, start)
        # Below the precision, the quotients of the recurrence are only rounding.
        target = max(0.9 * self.tol, operator.epsilon)
        verification, step, finished = Verification(self.tol), 0, True
        residual = recurrence.relative_residual()
        while finished and step < self.steps:
            finished, taken = self._advance(recurrence, residual, target, self.steps - step)
            step, residual = step + taken, recurrence.verify()
            if finished and not verification.should_continue(residual):
                break
        vector = operator.unravel(recurrence.solution)
        floor = rounding_floors(gradient, vector, operator) if finished else None
        known = Status.CONVERGED if verification.converged else None
        products = operator.products - before
        solution = LinearSolution(vector, step, products, residual, self.tol, known=known, floor=floor)
        return self.finish(recurrence, solution)

    def _advance(self, recurrence: Recurrence, residual: Tensor, target: float, max_steps: int) -> tuple[bool, int]:
        """Takes steps while any sample is active; returns whether all became inactive, and the number of steps."""
        schedule = CheckSchedule(self.check_every, target if self.tol > 0 else 0.0, recurrence.operator.epsilon)
        # Not ``>``, so that a sample with NaN stays active.
        active = ~(residual <= target)
        for step in range(1, max_steps + 1):
            able = recurrence.advance(active)
            recurrence.begins = False
            residual = recurrence.relative_residual()
            active = active & able & ~(residual <= target)
            # A sample that has broken down, or has NaN, does not keep the others going.
            pending = torch.where(active & (residual > target), residual, 0)
            if self.tol > 0 and schedule.should_check(step) and schedule.is_finished(step, pending):
                return True, step
        return False, step
