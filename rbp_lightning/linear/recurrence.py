"""The loop of the solvers that update an iterate and its residual from step to step."""

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
    """One solve by a short recurrence: the iterate, its residual and the directions that lead to the next one.

    Args:
        operator: Products with J and J^T.
        gradient: Leaves of g.
        start: Leaves of a first z; ``None`` is 0.

    Attributes:
        solution: z, one vector per sample, ``[*batch, size]``.
        residual: g - (I - J^T) z as it was updated, which does not know of rounding.
        begins: Whether the next step is the first one, for which there is no direction yet.
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
        """The residual as ``RelativeResidual`` has it."""
        return self._relative(self.operator.unravel(self.residual), self.operator.unravel(self.solution))

    def verify(self) -> Tensor:
        """Begins anew with the true residual; returns what that is relative to g."""
        self.residual, self.begins = self._right - self.product(self.solution), True
        return self.relative_residual()

    @abstractmethod
    def advance(self, active: Tensor) -> Tensor:
        """Takes a step in each active sample.

        Args:
            active: Which samples take one, of the shape of the batch dimensions.

        Returns:
            Which samples can take another: not those whose method has broken down.
        """

    def move(self, length: Tensor, direction: Tensor, image: Tensor) -> None:
        """Goes along a direction, by a length for each sample.

        Args:
            length: The lengths; 0 leaves a sample as it is.
            direction: The direction.
            image: (I - J^T) times the direction.
        """
        self.solution = torch.addcmul(self.solution, length[..., None], direction)
        self.residual = torch.addcmul(self.residual, length[..., None], image, value=-1)


class RecurrentSolver(LinearSolver, ABC):
    """A solver by a short recurrence. Samples advance side by side, each with step lengths of its own.

    Where the true residual turns out to be above the tolerance in the end, the method begins anew with it.

    Args:
        steps: Most steps, at least 1.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``steps``. Samples rest at 0.9 of it,
            since the updated residual differs from the true one by rounding.
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
        """Begins a solve.

        Args:
            operator: Products with J and J^T.
            gradient: Leaves of g.
            start: Leaves of a first z; ``None`` is 0.
        """

    def finish(self, recurrence: Recurrence, solution: LinearSolution) -> LinearSolution:
        """What a solver has to say at the end, if anything; returns the solution.

        Args:
            recurrence: The solve at its end.
            solution: What came of it.
        """
        return solution

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Takes steps until every sample has converged or ``steps`` are spent."""
        before = operator.products
        recurrence = self.begin(operator, gradient, start)
        # Below rounding there is nothing left to divide by.
        rest = max(0.9 * self.tol, operator.epsilon)
        verification, step, finished = Verification(self.tol), 0, True
        left = recurrence.relative_residual()
        while finished and step < self.steps:
            finished, taken = self._advance(recurrence, left, rest, self.steps - step)
            step, left = step + taken, recurrence.verify()
            if finished and not verification.goes_on(left):
                break
        vector = operator.unravel(recurrence.solution)
        floor = rounding_floors(gradient, vector, operator) if finished else None
        known = Status.CONVERGED if verification.converged else None
        products = operator.products - before
        solution = LinearSolution(vector, step, products, left, self.tol, known=known, floor=floor)
        return self.finish(recurrence, solution)

    def _advance(self, recurrence: Recurrence, left: Tensor, rest: float, most: int) -> tuple[bool, int]:
        """Takes steps until no sample takes one or ``most`` are spent; returns which it was, and how many."""
        schedule = CheckSchedule(self.check_every, rest if self.tol > 0 else 0.0, recurrence.operator.epsilon)
        # Not ``>``: a sample with NaN has to keep it.
        active = ~(left <= rest)
        for step in range(1, most + 1):
            able = recurrence.advance(active)
            recurrence.begins = False
            left = recurrence.relative_residual()
            active = active & able & ~(left <= rest)
            # Nobody waits for a sample that cannot go on, or has NaN.
            waited_for = torch.where(active & (left > rest), left, 0)
            if self.tol > 0 and schedule.should_check(step) and schedule.is_finished(step, waited_for):
                return True, step
        return False, step
