"""Truncated back-propagation through time."""

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from rbp_lightning.adjoint import truncation_error
from rbp_lightning.errors import UserError, check_count
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.replace_gradient import replace_gradient
from rbp_lightning.fixed_point import ConvergenceTest
from rbp_lightning.pytree import State, Vector, norm
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
        sizes: dict[int, Tensor] = {}

        def watched(step: int, state: State) -> State:
            def tell(gradient: Vector) -> Vector:
                sizes[step] = norm(gradient, test.batch_dims)
                if step == 0:
                    self._report_truncation(sizes)
                return gradient

            return replace_gradient(tell, state)

        for step in range(self.steps):
            # The first change, which tells divergence, may be among these.
            edge = step in (0, self.steps - 1)
            state = self.taped_step(update, state, test) if edge else update(state)
            if edge or step == 1:
                state = watched(step, state)
        return state, untaped_steps + self.steps

    def _report_truncation(self, sizes: dict[int, Tensor]) -> None:
        """Reports from the norms of the gradient at the last, the second and the first of the taped steps."""
        first, last = sizes[self.steps - 1], sizes[0]
        estimate = truncation_error(first, sizes.get(1), last, self.steps - 1)
        self.report_adjoint(self.steps, torch.where(first == 0, last, last / first), error_estimate=estimate)
