"""Truncated back-propagation through time."""

import torch

from rbp_lightning.errors import UserError, check_count
from rbp_lightning.estimators.adjoint_record import AdjointRecord
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.derivative_request import Attach, DerivativeRequest
from rbp_lightning.estimators.tape_watch import TapeWatch
from rbp_lightning.estimators.unrolled import unrolled
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver, Picard, Solve
from rbp_lightning.solvers.fixed_steps import FixedSteps


class TBPTT(GradientEstimator):
    """Truncated back-propagation through time: differentiates only the last steps (paper, section 2.2).

    At the fixed point ``TBPTT(K + 1)`` equals ``NeumannRBP(K)``, but its memory grows linearly with K. The
    differentiated steps are plain ones, whatever the solver. With a tolerance, the returned state is the argument of
    the last step, which measures its residual. An estimated truncation error above the policy's ``truncation_tol`` is
    reported.

    Args:
        steps: Number of differentiated steps, from 1 to the solver's ``max_steps``; they count towards ``max_steps``.
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Raises:
        UserError: If ``steps`` is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> TBPTT(steps=5)(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # 2 + 1 + 0.5 + 0.25 + 0.125 of the true 4
        tensor(3.8750)
    """

    def __init__(self, steps: int = 20, solver: FixedPointSolver | None = None) -> None:
        super().__init__(solver)
        self.steps = check_count(self, "steps", steps, 1)
        self.check_max_steps(self.solver.max_steps)

    def check_max_steps(self, max_steps: int) -> None:
        """Checks that there are at least as many steps as are differentiated."""
        if self.steps > max_steps:
            raise UserError(
                f"TBPTT: steps={self.steps} is more than max_steps={max_steps} of the forward solve: decrease steps or "
                "increase max_steps."
            )

    def taped_steps(self, step: int) -> int:
        """The same number as for the fixed point."""
        return self.steps

    def differentiate(self, solve: Solve, record: AdjointRecord) -> Vector:
        """Runs the solver without gradients, and the last steps with gradients."""
        start = solve.without_tape(steps_after=self.steps)
        if record.observers:  # they may take products with the Jacobian of the last step
            start = [leaf.requires_grad_() for leaf in start]

        def taped_steps() -> tuple[TapeWatch, Vector]:
            watch = TapeWatch(record, solve.batch_dims)
            solve.step_hook = watch.after_step
            image = solve.last_steps(start, self.steps)
            solve.step_hook = None
            return watch, image

        watch, image = solve.freezing_failures(taped_steps)
        return watch.after_tape(self.steps, image, solve.values(image))

    def differentiate_to_order(self, solve: Solve, record: AdjointRecord, request: DerivativeRequest) -> Attach:
        """Runs the solver without gradients, and then repeats the last steps with gradients."""
        start = solve.without_tape(steps_after=self.steps)
        with torch.no_grad():
            image = solve.freezing_failures(lambda: solve.last_steps(start, self.steps))
        return unrolled(solve, record, request, start, self.steps, solve.values(image), Picard(), ends_with_image=True)

    def differentiate_traced(self, solve: FixedSteps) -> Vector:
        """Runs the solver without gradients, and the last steps with gradients."""
        return solve.last_steps(solve.without_tape(steps_after=self.steps), self.steps)
