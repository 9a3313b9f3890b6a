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

    The gradient is exact for the returned iterate, except that the initial state and frozen samples get the gradient of
    one step. Memory grows linearly with the number of steps. A solve that starts near the fixed point takes few steps,
    so its gradient is truncated; the truncation error is reported as for ``TBPTT``, unless the initial state requires
    a gradient, or the solver's tolerance is 0.

    Args:
        solver: Forward solver for the fixed point; ``None`` is ``Picard()``.

    Raises:
        UserError: If the solver cannot be unrolled, as accelerated solvers cannot.

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
                f"BPTT: solver={type(self.solver).__name__} cannot be unrolled, since the derivatives of its iterates "
                "converge more slowly than the iterates: use Picard, or an estimator that does not unroll the solver, "
                "such as Implicit."
            )

    def taped_steps(self, step: int) -> int:
        """All steps, and with a tolerance the one that measures the residual."""
        return step + 1 if self.solver.tol > 0 else step

    def differentiate(self, solve: Solve, record: AdjointRecord) -> Vector:
        """Runs the solver with gradients enabled."""
        watched = self.solver.tol > 0 and not any(leaf.requires_grad for leaf in solve.start)
        if record.observers:  # they may take products with the Jacobian of the last step, which can be the first
            solve.start = [leaf if leaf.requires_grad else leaf.detach().requires_grad_() for leaf in solve.start]

        def run() -> tuple[int, TapeWatch, Vector]:
            watch, before = TapeWatch(record, solve.batch_dims), solve.steps
            solve.test.history.clear()  # of an earlier run in which samples failed
            if watched:
                solve.step_hook = watch.after_step
            image = self.iterate(solve)
            solve.step_hook = None
            return solve.steps - before, watch, image

        steps, watch, image = solve.freezing_failures(run)
        values, mask = solve.values(image), solve.frozen.mask
        if self.solver.tol > 0 and steps > 1:
            # The returned state is the last but one iterate.
            steps, image = steps - 1, solve.measured if mask is None else where(mask, image, solve.measured)
        if watched:
            return watch.after_tape(steps, image, values)
        if self.solver.tol == 0 or image is solve.measured:  # these can be differentiated twice
            return [leaf.clone() for leaf in image]
        return watch_gradient(lambda gradient: None, image, values)

    def differentiate_to_order(self, solve: Solve, record: AdjointRecord, request: DerivativeRequest) -> Attach:
        """Runs the solver without gradients, and then repeats its steps with gradients."""

        def run() -> tuple[int, Vector]:
            before = solve.steps
            solve.test.history.clear()  # of an earlier run in which samples failed
            image = solve.iterate(solve.max_steps, first_taped=True)
            return solve.steps - before, image

        with torch.no_grad():
            steps, image = solve.freezing_failures(run)
        measured = self.solver.tol > 0 and steps > 1
        if measured:
            steps -= 1  # the returned state is the last but one iterate
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
        """Runs the solver with gradients enabled."""
        return solve.iterate(solve.max_steps)
