"""Back-propagation through time."""

import torch

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.adjoint_record import AdjointRecord
from rbp_lightning.estimators.attach_adjoint import watch_gradient
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.derivative_request import Attach, DerivativeRequest
from rbp_lightning.estimators.tape_watch import TapeWatch
from rbp_lightning.estimators.unrolled import unrolled
from rbp_lightning.pytree import Vector, where
from rbp_lightning.solvers import FixedPointSolver, Picard, Solve
from rbp_lightning.solvers.fixed_steps import FixedSteps


class BPTT(GradientEstimator):
    """Back-propagation through time: differentiates every step of the forward solve (paper, section 2.2).

    Exact for the iterate that is returned, unless that is the initial state or a frozen sample, which get the gradient
    of one step; memory grows linearly with the number of steps. A solve that started near
    the fixed point has a gradient of few steps only: what is left of it at the first one is reported as for ``TBPTT``,
    unless the initial state passes it on, or the solver's tolerance is 0 and its number of steps what is wanted.

    Args:
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Raises:
        UserError: If the solver cannot be put on a tape, as those that accelerate cannot.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> BPTT(Picard(tol=1e-7))(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.0000)
    """

    def __init__(self, solver: FixedPointSolver | None = None) -> None:
        super().__init__(Picard() if solver is None else solver)
        if not self.solver.differentiable:
            raise UserError(
                f"BPTT: solver={type(self.solver).__name__} cannot be put on a tape, where its derivatives would lag "
                "behind its iterates: use Picard, or an estimator that tapes no solver, such as Implicit."
            )

    def taped_steps(self, step: int) -> int:
        """All of them, and with a tolerance the one that measures the residual."""
        return step + 1 if self.solver.tol > 0 else step

    def differentiate(self, solve: Solve, record: AdjointRecord) -> Vector:
        """Runs the solver on the tape."""
        watched = self.solver.tol > 0 and not any(leaf.requires_grad for leaf in solve.start)
        if record.observers:  # who may want products with the Jacobian of the last step, which may be the first
            solve.start = [leaf if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in solve.start]

        def run() -> tuple[int, TapeWatch, Vector]:
            watch, before = TapeWatch(record, solve.batch_dims), solve.steps
            solve.test.history.clear()  # of a run in which samples failed
            if watched:
                solve.tap = watch.after_step
            image = self.iterate(solve)
            solve.tap = None
            return solve.steps - before, watch, image

        steps, watch, image = solve.freezing_failures(run)
        values, mask = solve.values(image), solve.frozen.mask
        if self.solver.tol > 0 and steps > 1:
            # The state that is returned is the one before the last, and has a gradient of its own.
            steps, image = steps - 1, solve.measured if mask is None else where(mask, image, solve.measured)
        if watched:
            return watch.after_tape(steps, image, values)
        if self.solver.tol == 0 or image is solve.measured:  # which can be differentiated twice
            return [leaf.clone() for leaf in image]
        return watch_gradient(lambda gradient: None, image, values)

    def differentiate_to_order(self, solve: Solve, record: AdjointRecord, request: DerivativeRequest) -> Attach:
        """Runs the solver without a tape, and has as many steps taken on it."""

        def run() -> tuple[int, Vector]:
            before = solve.steps
            solve.test.history.clear()  # of a run in which samples failed
            image = solve.iterate(solve.max_steps, first_taped=True)
            return solve.steps - before, image

        with torch.no_grad():
            steps, image = solve.freezing_failures(run)
        measured = self.solver.tol > 0 and steps > 1
        if measured:
            steps -= 1  # the state that is returned is the one before the last
        return unrolled(
            solve, record, request, None, steps, solve.values(image), self.solver, ends_with_image=not measured
        )

    def iterate(self, solve: Solve) -> Vector:
        """Runs the solver with gradients enabled.

        Args:
            solve: The solve.

        Returns:
            Leaves of the last F(h).
        """
        return solve.iterate(solve.max_steps)

    def differentiate_traced(self, solve: FixedSteps) -> Vector:
        """Runs the solver on the tape."""
        return solve.iterate(solve.max_steps)
