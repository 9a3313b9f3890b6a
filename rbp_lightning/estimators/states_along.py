"""States on the way to a fixed point, for losses along it."""

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
"""Nobody said that a state on the way is a fixed point."""


def first_taped(estimator: Estimator, step: int, taped: bool) -> int:
    """Number of the step after which the tape of a state begins.

    Args:
        estimator: The estimator.
        step: Number of the step that the state comes after.
        taped: Whether there is a tape.

    Raises:
        UserError: If more steps are taped than there are.
    """
    if not taped:
        return step
    # With a tolerance the last step on the tape measures the residual of the state, and is no step to it.
    count = estimator.taped_steps(step) - (1 if estimator.solver.tol > 0 else 0)
    if count > step:
        raise UserError(
            f"{type(estimator).__name__}: states_at has {step}, but {count} steps to a state are taped: ask for states "
            f"from {count} on, or tape fewer."
        )
    return step - count


def states_along(
    estimator: Estimator,
    solve: Solve,
    again: Callable[[State, Options], FixedPoint],
    initial_state: State,
    final: State,
    options: Options,
    request: DerivativeRequest | None,
    taped: bool,
) -> tuple[State, ...]:
    """Makes the states along a solve differentiable, each by a short solve of its own.

    Args:
        estimator: The estimator.
        solve: The solve, which has kept where these begin.
        again: Solves from a state, with options.
        initial_state: Where it began, which a tape of all steps passes its gradient on to.
        final: The fixed point, which stands for states after the end.
        options: What is asked for.
        request: Which derivatives; ``None`` for first ones outside transforms.
        taped: Whether there is a tape.
    """
    states: list[State] = []
    for step in options.states_at:
        begin = first_taped(estimator, step, taped)
        leaves = solve.kept.get(begin)
        if leaves is None:
            states.append(final)
            continue
        # Of other orders the leaves are plain and detached; within transforms detaching would wrap them.
        leaves = [leaf.detach() for leaf in leaves] if request is None else request.lift(leaves)
        state = initial_state if begin == 0 else tree_unflatten(leaves, solve.structure)
        if taped:
            count = estimator.taped_steps(step)
            own = Options(options.batch_dims, max_steps=count, order=options.order, growth_fails=False)
            with ignoring(*EXPECTED), not_observing():
                state = again(state, own).state
        states.append(state)
    return tuple(states)
