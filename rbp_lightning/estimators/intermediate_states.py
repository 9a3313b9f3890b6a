"""Differentiable intermediate states of a solve, for losses on them."""

from collections.abc import Callable

from torch.utils._pytree import tree_unflatten

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.derivative_request import DerivativeRequest
from rbp_lightning.estimators.estimator_protocol import Estimator
from rbp_lightning.estimators.observer import not_observing
from rbp_lightning.estimators.options import Options
from rbp_lightning.failures import Failure
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.pytree import State
from rbp_lightning.reporting import ignoring
from rbp_lightning.solvers import Solve

EXPECTED = Failure.NOT_CONVERGED, Failure.DIVERGED, Failure.RANDOM
"""Failures that are expected, because an intermediate state is not a fixed point."""


def tape_start(estimator: Estimator, step: int, taped: bool) -> int:
    """Number of the step after which the recorded graph of an intermediate state begins.

    Args:
        estimator: The estimator.
        step: Number of the step whose state it is.
        taped: Whether gradients are enabled.

    Raises:
        UserError: If the estimator differentiates more steps than there are.
    """
    if not taped:
        return step
    # With a tolerance, the last recorded step only measures the residual of the state.
    count = estimator.taped_steps(step) - (1 if estimator.solver.tol > 0 else 0)
    if count > step:
        raise UserError(
            f"{type(estimator).__name__}: states_at has {step}, but the last {count} steps before a state are "
            f"differentiated: request states from step {count} on, or differentiate fewer steps."
        )
    return step - count


def intermediate_states(
    estimator: Estimator,
    solve: Solve,
    again: Callable[[State, Options], FixedPoint],
    initial_state: State,
    final: State,
    options: Options,
    request: DerivativeRequest | None,
    taped: bool,
) -> tuple[State, ...]:
    """Makes the intermediate states of a solve differentiable, each by a short solve of its own.

    Args:
        estimator: The estimator.
        solve: The finished solve, which has saved the states at which these solves start.
        again: Runs a solve from a state, with options.
        initial_state: The initial state of the solve, which gets a gradient if all steps are differentiated.
        final: The fixed point, which is returned for steps after the end of the solve.
        options: The options of the call.
        request: The requested derivatives; ``None`` for first ones in reverse mode outside transforms.
        taped: Whether gradients are enabled.
    """
    states: list[State] = []
    for step in options.states_at:
        begin = tape_start(estimator, step, taped)
        leaves = solve.saved.get(begin)
        if leaves is None:
            states.append(final)
            continue
        # With a request the leaves are detached already; detaching them within transforms would wrap them.
        leaves = [leaf.detach() for leaf in leaves] if request is None else request.lift(leaves)
        state = initial_state if begin == 0 else tree_unflatten(leaves, solve.structure)
        if taped:
            count = estimator.taped_steps(step)
            own = Options(options.batch_dims, max_steps=count, order=options.order, growth_fails=False)
            with ignoring(*EXPECTED), not_observing():
                state = again(state, own).state
        states.append(state)
    return tuple(states)
