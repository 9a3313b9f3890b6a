"""Creates the result of a solve, and reports a solve that failed."""

from torch.utils._pytree import tree_unflatten

from rbp_lightning.agreement import count_of, everywhere, largest
from rbp_lightning.estimators.adjoint_record import AdjointRecord, parameters_of
from rbp_lightning.failures import Failure
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.pytree import Vector
from rbp_lightning.reporting import SolveContext, in_context, report
from rbp_lightning.solvers import Solve
from rbp_lightning.status import Status


def solve_result(
    name: str, solve: Solve, image: Vector, context: SolveContext, record: AdjointRecord | None, is_random: bool
) -> FixedPoint:
    """Creates the result of a solve, and reports a failure to the policy.

    Args:
        name: The estimator's name, for messages.
        solve: The finished solve.
        image: Leaves of the fixed point.
        context: The failure handler, and the line that called the solve.
        record: Where the backward pass stores how it solved the adjoint equation.
        is_random: Whether the update is known to be random, so that it cannot have converged.

    Raises:
        ConvergenceError: If the solve failed and the policy is to raise.
    """
    status, codes = solve.status()
    if is_random and status in (Status.CONVERGED, Status.STALLED):
        status, codes = Status.MAX_STEPS, codes.clamp_min(Status.MAX_STEPS.code)
    failure = None if status is Status.CONVERGED else status.failure
    # A tolerance of 0 asks for a number of steps, not convergence.
    if failure is Failure.NOT_CONVERGED and solve.solver.tol == 0:
        failure = None
    if failure is not None and context.handler.action(failure) == "ignore":
        failure = None
    # With tol=0, a random update, such as a training step on minibatches, is intended.
    if failure in (Failure.NOT_CONVERGED, Failure.DIVERGED) and solve.solver.tol > 0:
        failure = Failure.RANDOM if is_random or solve.is_stochastic() else failure
    last = solve.test.last
    assert last is not None  # every solve observes its last step
    change, size = (last.change, last.size) if last.leaves is None else last.worst()
    frozen = solve.frozen.mask
    if frozen is not None:
        if record is not None:
            record.bounded = ~frozen
        # F was not finite at the best iterate, and was replaced by the iterate, so its change is not really 0.
        change = change.masked_fill(frozen & (change == 0), float("nan"))
    fixed_point = FixedPoint(
        state=tree_unflatten(list(image), solve.structure),
        steps=solve.function.calls,
        absolute_residual=change,
        size=size,
        status=status,
        sample_status=codes,
        history=tuple(solve.test.history),
        tol=solve.solver.tol,
        record=record,
    )
    if failure is not None:
        failed = fixed_point.samples(Status.DIVERGED, Status.NAN, *([Status.MAX_STEPS] if solve.solver.tol > 0 else []))
        count, samples = count_of(failed)
        whose = f" ({count} of {samples} samples)" if samples > 1 else ""
        worst = float(largest(fixed_point.residual.max()))
        with in_context(context):
            report(
                failure,
                f"{name}: The forward solve applied F {solve.steps} times, to a relative residual of "
                f"{worst:.2e} (tol={solve.solver.tol:g}), status {status.value!r}{whose}"
                f"{_of_one_leaf(solve)}",
                parameters_of(image),
            )
    return fixed_point


def _of_one_leaf(solve: Solve) -> str:
    """An addition to the message if only one leaf has not converged."""
    last = solve.test.last
    if last is None or last.leaves is None or not everywhere((last.change <= solve.solver.tol * last.size).all()):
        return ""
    return ", which is that of one leaf; with one norm over all leaves (per_leaf=False) it has converged"
