"""Solves within torch.compile, torch.export or torch.jit.trace."""

from typing import Protocol

import torch
from torch.utils._pytree import tree_unflatten

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.options import Options
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.pytree import State, Vector
from rbp_lightning.solvers import FixedPointSolver, Update
from rbp_lightning.solvers.fixed_steps import FixedSteps
from rbp_lightning.status import Status
from rbp_lightning.tracing import is_traced_for_inference


class Traceable(Protocol):
    """The part of ``GradientEstimator`` that a traced solve uses."""

    solver: FixedPointSolver

    def check_max_steps(self, max_steps: int) -> None:
        """Checks that the number of steps is large enough."""

    def differentiate_traced(self, solve: FixedSteps) -> Vector | None:
        """Finds the fixed point with gradients enabled."""


def traced_solve(
    estimator: Traceable,
    update: Update,
    initial_state: State,
    options: Options,
) -> FixedPoint | None:
    """Runs a fixed number of steps without data-dependent control flow.

    Failures are not reported, and observers not called. Programs for inference, from ``torch.export`` and
    ``torch.jit.trace``, contain only the steps.

    Args:
        estimator: The estimator.
        update: The function F.
        initial_state: The initial state.
        options: The options of the call.

    Returns:
        The fixed point, always with status ``MAX_STEPS``; ``None`` if ``torch.compile`` must break the graph, because
        the number of steps or the gradient depends on data.

    Raises:
        UserError: If the number of steps depends on data and the graph cannot be broken, or the state or the update is
            invalid.

    Example:
        >>> traced_solve(BPTT(Picard(60, tol=0)), torch.cos, torch.zeros(()), Options()).state
        tensor(0.7391)
    """
    solver = estimator.solver
    if options.max_steps is not None and torch.is_grad_enabled():
        estimator.check_max_steps(options.max_steps)
    if solver.tol > 0 or not options.plain:
        if is_traced_for_inference():
            raise UserError(
                f"{type(estimator).__name__}: torch.export, ONNX, torch.jit.trace and make_fx need a number of steps "
                f"that does not depend on the data: give {type(solver).__name__} tol=0 and the max_steps that are "
                "wanted, and pass neither warm_start, history, progress, order nor states_at."
            )
        return None
    solve = FixedSteps(update, initial_state, options.batch_dims, solver, options.max_steps or solver.max_steps)
    if torch.is_grad_enabled() and not is_traced_for_inference():
        image = estimator.differentiate_traced(solve)
        if image is None:
            return None
    else:
        image = solve.iterate(solve.max_steps)
    last = solve.test.last
    assert last is not None  # every solve has a step
    change, size = last.worst()
    return FixedPoint(
        state=tree_unflatten([leaf.clone() for leaf in image], solve.structure),
        steps=solve.max_steps,
        absolute_residual=change,
        size=size,
        status=Status.MAX_STEPS,
        sample_status=solve.test.codes(stalled=False),
        history=(),
        tol=0.0,
    )
