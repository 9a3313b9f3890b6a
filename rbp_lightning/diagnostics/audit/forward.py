"""How many steps each forward solver takes."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from lightning.pytorch import LightningModule

from rbp_lightning.diagnostics.audit.gradient import copy_of, gradient_of
from rbp_lightning.estimators import NeumannRBP, SolveObserver
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear import JacobianOperator
from rbp_lightning.solvers import (
    Anderson,
    Auto,
    Broyden,
    Damped,
    FixedPointSolver,
    NewtonKrylov,
    Picard,
    ReducedRankExtrapolation,
)

SOLVERS = (Picard, Anderson, ReducedRankExtrapolation, Broyden, NewtonKrylov, Auto)


@dataclass(frozen=True)
class ForwardMeasurement:
    """A forward solver on one batch.

    Attributes:
        solver: Its name.
        batch: Number of the batch.
        steps: How often it applied the update, all solves of the training step together.
        residual: Relative residual, of the worst sample.
        converged: Whether all solves converged.
        seconds: Time of the training step and the backward pass of a one-step gradient.
    """

    solver: str
    batch: int
    steps: int
    residual: float
    converged: bool
    seconds: float


class _Steps(SolveObserver):
    """Sums the steps of the solves of a training step."""

    def __init__(self) -> None:
        self.solves: list[FixedPoint] = []

    def on_solve_end(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        self.solves.append(fixed_point)


def solvers_like(configured: FixedPointSolver) -> Iterator[tuple[str, FixedPointSolver]]:
    """The forward solvers that are compared, each with the tolerances and the most steps of the configured one.

    Args:
        configured: The solver of the run that is audited; it is among them. With a tolerance of 0 its number of steps
            is a part of the problem, and there is nothing to compare.

    Yields:
        A name and a solver.
    """
    if configured.tol > 0:
        for kind in SOLVERS:
            yield kind.__name__, _with_tolerances_of(configured, kind)
        yield f"{type(configured).__name__} as configured", configured


def taped_solver(configured: FixedPointSolver) -> FixedPointSolver:
    """A solver that can be put on a tape: the configured one, or else Picard iteration with its tolerances.

    Args:
        configured: The solver of the run that is audited.
    """
    if isinstance(configured, Damped):
        return Damped(taped_solver(configured.solver), configured.damping)
    return configured if configured.differentiable else _with_tolerances_of(configured, Picard)


def learning_solver(configured: FixedPointSolver) -> Broyden:
    """A solver that learns the inverse Jacobian: the configured one, or else Broyden's method with its tolerances.

    Args:
        configured: The solver of the run that is audited.
    """
    if isinstance(configured, Broyden):
        return configured
    return Broyden(configured.max_steps, configured.tol, configured.check_every, configured.atol, configured.per_leaf)


def _with_tolerances_of(
    configured: FixedPointSolver, kind: Callable[[int, float, int, float | None, bool], FixedPointSolver]
) -> FixedPointSolver:
    return kind(configured.max_steps, configured.tol, configured.check_every, configured.atol, configured.per_leaf)


def measure_forward(
    module: LightningModule, name: str, solver: FixedPointSolver, arguments: Sequence[Any], batch: int
) -> ForwardMeasurement:
    """Counts the steps that a forward solver takes in a training step.

    Args:
        module: The module.
        name: What to call the solver.
        solver: The solver.
        arguments: Those of the module's ``training_step``.
        batch: Number of the batch.
    """
    observer = _Steps()
    _, seconds = gradient_of(copy_of(module), NeumannRBP(0, solver), arguments, lambda: observer)
    return ForwardMeasurement(
        solver=name,
        batch=batch,
        steps=sum(one.steps for one in observer.solves),
        residual=max(float(one.residual.max()) for one in observer.solves),
        converged=all(one.converged for one in observer.solves),
        seconds=seconds,
    )


def advise_solver(measured: Sequence[ForwardMeasurement]) -> str:
    """Names the forward solver that converges in the fewest steps, where it saves a tenth of the configured one's.

    Args:
        measured: The solvers on all batches.

    Returns:
        A clause, or nothing.

    Example:
        >>> found = [ForwardMeasurement(name, 0, steps, 1e-7, True, 0.1) for name, steps in
        ...          [("Picard", 90), ("Auto", 30), ("Picard as configured", 90)]]
        >>> advise_solver(found)
        ' The forward solve takes the fewest steps with solver=Auto, 30 instead of 90.'
    """
    steps: dict[str, int] = {}
    for one in measured:
        steps[one.solver] = steps.get(one.solver, 0) + one.steps
    failed = {one.solver for one in measured if not one.converged}
    configured = next((name for name in steps if name.endswith(" as configured")), None)
    good = {name: count for name, count in steps.items() if name not in failed and name != configured}
    if configured is None or not good:
        return ""
    best = min(good, key=lambda name: good[name])
    if configured in failed:
        return f" The forward solve converges with solver={best}, in {good[best]} steps."
    if good[best] > 0.9 * steps[configured]:
        return ""
    return f" The forward solve takes the fewest steps with solver={best}, {good[best]} instead of {steps[configured]}."
