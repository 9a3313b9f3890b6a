"""The adjoint iteration z <- J^T z + g, which forward solvers can accelerate."""

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from rbp_lightning.agreement import largest
from rbp_lightning.check_schedule import FALLING, CheckSchedule
from rbp_lightning.linear.adjoint_map import AdjointMap
from rbp_lightning.linear.base import LinearSolution, rounding_floors
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.relative_residual import RelativeResidual
from rbp_lightning.pytree import Vector, add, subtract
from rbp_lightning.reporting import current_context
from rbp_lightning.status import Status
from rbp_lightning.steps_ahead import Step, StepsAhead

SOLUTION_RATIO = 16
"""Assumed upper limit of ||z|| / ||g|| in the estimate of the rounding error."""


class Stepper(Protocol):
    """Computes the next iterate; see ``FixedPointSolver``."""

    def init(self, vector: Vector, batch_dims: int) -> Any:
        """The memory before the first step."""

    def step(self, vector: Vector, image: Vector, memory: Any) -> tuple[Vector, Any]:
        """The next iterate, and the new memory."""

    def after_check(self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: Any) -> Any:
        """The new memory after a convergence check."""

    def propagated(self, vector: Vector, product: Step, memory: Any) -> Vector | None:
        """The product with the last change, if the next change is that; ``None`` otherwise."""


def iterate_adjoint(
    operator: AdjointMap,
    gradient: Vector,
    start: Vector,
    steps: int,
    tol: float,
    check_every: int,
    stepper: Stepper | None = None,
    graph_steps: int = 0,
) -> LinearSolution:
    """Iterates z <- J^T z + g until every sample that stays finite has converged.

    The change J^T z + g - z is the residual of the adjoint equation at z, which is therefore returned once it has
    converged. If ``tol`` is 0, the reported residual is that of the last z but one.

    Where the stepper allows it, the next change is a product with the last one. Its rounding error is relative to the
    change, whereas that of a product with z is relative to z, which is much larger near the end. The residual of a
    check is always that of a product with z.

    Args:
        operator: Products with J^T.
        gradient: Leaves of g.
        start: Leaves of the initial z.
        steps: Maximum number of products with J^T, at least 1.
        tol: Relative residual at which a sample has converged; 0 takes exactly ``steps`` steps.
        check_every: Steps between two convergence checks.
        stepper: Computes the next z; ``None`` takes J^T z + g.
        graph_steps: Number of steps in a CUDA graph; 0 uses no graph.
    """
    before = operator.products
    relative = RelativeResidual(gradient, operator.batch_dims, operator.per_leaf)
    schedule = CheckSchedule(check_every, tol, SOLUTION_RATIO * operator.epsilon)
    known = floor = None
    failed: Tensor | None = None  # the samples that are not finite
    tolerated_at = 0  # the check at which a value that is not finite was last tolerated
    adjoint: Vector = start
    memory = None if stepper is None else stepper.init(start, operator.batch_dims)
    apply = _step(operator, gradient)
    if graph_steps and isinstance(operator, JacobianOperator):
        apply = _step_in_graphs(operator, gradient, graph_steps)
    propagating = stepper if isinstance(operator, JacobianOperator) else None  # which is linear
    for step in range(1, steps + 1):
        check = tol > 0 and schedule.should_check(step)
        change = None
        if propagating is not None and not check and step < steps:
            change = propagating.propagated(adjoint, operator.vjp, memory)
        previous, adjoint = adjoint, apply(adjoint) if change is None else add(adjoint, change)
        if check or step == steps:
            residual = relative(subtract(adjoint, previous), previous)
        if check:
            finished = schedule.is_finished(step, residual if failed is None else residual.masked_fill(failed, 0.0))
            if not math.isfinite(schedule.largest):
                if stepper is not None and tolerated_at != step - 1:  # an accelerated step, which is undone
                    tolerated_at, schedule.next_check = step, step + 1
                else:
                    failed = ~residual.isfinite()
                    finished = schedule.decide(step, float(largest(residual.masked_fill(failed, 0.0).max())))
            if finished:
                adjoint = previous
                if failed is None or not failed.any():
                    known = Status.STALLED if schedule.stalled else Status.CONVERGED
                break
        if stepper is not None and step < steps:
            if check and step > 1 and math.isfinite(schedule.largest):
                memory = stepper.after_check(step, schedule, previous, adjoint, memory)
            adjoint, memory = stepper.step(previous, adjoint, memory)
    else:
        if tol > 0:
            last, residual = residual, operator.adjoint_residual(gradient, adjoint)
            # In low precision there may be too few steps for the schedule to detect a stall.
            not_falling = residual > FALLING * last
            floor = torch.where(not_falling, rounding_floors(gradient, adjoint, operator), 0.0)
    return LinearSolution(adjoint, step, operator.products - before, residual, tol, known=known, floor=floor)


def _step(operator: AdjointMap, gradient: Vector) -> Step:
    return lambda adjoint: add(operator.vjp(adjoint), gradient)


def _step_in_graphs(operator: JacobianOperator, gradient: Vector, graph_steps: int) -> Step:
    # The graph of a captured VJP must be recorded on the stream of the capture.
    ahead = StepsAhead(
        _step(operator, gradient), graph_steps, current_context().place, lambda: _step(operator.reevaluated(), gradient)
    )

    def step(adjoint: Vector) -> Vector:
        products = operator.products
        following = ahead(adjoint)
        operator.products = products + 1  # count only the products of a graph that are used
        return following

    return step
