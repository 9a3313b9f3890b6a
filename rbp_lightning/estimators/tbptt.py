"""Truncated back-propagation through time."""

from torch.utils._pytree import tree_map

from rbp_lightning.errors import UserError, check_count
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.truncation import TruncationWatch
from rbp_lightning.fixed_point import ConvergenceTest
from rbp_lightning.pytree import State
from rbp_lightning.solvers import FixedPointSolver, Update
from rbp_lightning.warm_start import WarmStart


class TBPTT(GradientEstimator):
    """Truncated back-propagation through time: differentiates the last steps only (paper, section 2.2).

    At the fixed point ``TBPTT(K + 1)`` is ``NeumannRBP(K)``; its memory grows linearly with K. A tape that leaves
    out more than the policy's ``truncation_tol``, by ``truncation_error``, is reported.

    Args:
        steps: How many steps are taped, from 1 to the solver's ``max_steps``; they count towards ``max_steps``.
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Raises:
        UserError: If ``steps`` is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> TBPTT(steps=3)(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # 2 + 1 + 0.5 of the true 4
        tensor(3.5000)
    """

    def __init__(self, steps: int = 20, solver: FixedPointSolver | None = None) -> None:
        super().__init__(solver)
        self.steps = check_count(self, "steps", steps, 1)
        if self.steps > self.solver.max_steps:
            raise UserError(
                f"TBPTT: steps={steps} is more than the solver's max_steps={self.solver.max_steps}: lower steps or "
                "raise max_steps."
            )

    def solve_with_gradient(
        self, update: Update, state: State, test: ConvergenceTest, warm_start: WarmStart | None
    ) -> tuple[State, int]:
        """Runs the solver without a tape, and the last steps on it."""
        state, untaped_steps = self.iterate_untaped(update, state, self.steps, test)
        state = tree_map(lambda leaf: leaf.detach(), state)
        watch = TruncationWatch(self.report_truncation, test.batch_dims, self._observers_of_solve)
        for step in range(self.steps):
            # The first change, which tells divergence, may be among these.
            edge = step in (0, self.steps - 1)
            state = watch.after_step(step, self.taped_step(update, state, test) if edge else update(state))
        return watch.after_tape(self.steps, state), untaped_steps + self.steps
