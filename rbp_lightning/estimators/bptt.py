"""Back-propagation through time."""

import itertools

from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.truncation import TruncationWatch
from rbp_lightning.fixed_point import ConvergenceTest
from rbp_lightning.pytree import State
from rbp_lightning.solvers import FixedPointSolver, Update
from rbp_lightning.warm_start import WarmStart


class BPTT(GradientEstimator):
    """Back-propagation through time: differentiates every step of the forward solve (paper, section 2.2).

    Exact for the iterate that was reached; memory grows linearly with the number of steps. A solve that started near
    the fixed point has a gradient of few steps only: what is left of it at the first one is reported as for ``TBPTT``,
    unless the solver's tolerance is 0 and its number of steps what is meant.

    Args:
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> BPTT()(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.0000)
    """

    def __init__(self, solver: FixedPointSolver | None = None) -> None:
        super().__init__(solver)

    def solve_with_gradient(
        self, update: Update, state: State, test: ConvergenceTest, warm_start: WarmStart | None
    ) -> tuple[State, int]:
        """Runs the solver on the tape."""
        if self.solver.tol == 0:
            return self.solver.iterate(update, state, self.solver.max_steps, test)
        watch = TruncationWatch(self.report_truncation, test.batch_dims, self._observers_of_solve)
        numbers = itertools.count()

        def watched(state: State) -> State:
            return watch.after_step(next(numbers), update(state))

        state, steps = self.solver.iterate(watched, state, self.solver.max_steps, test)
        return watch.after_tape(steps, state), steps
