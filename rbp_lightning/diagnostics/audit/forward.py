"""The comparison of forward solvers in an audit."""

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
        solver: The solver's name.
        batch: The index of the batch.
        steps: The number of updates, over all solves of the training step.
        residual: The relative residual of the worst sample.
        converged: Whether all solves converged.
        seconds: The time of the training step with a one-step gradient.
    """

    solver: str
    batch: int
    steps: int
    residual: float
    converged: bool
    seconds: float


class _Solves(SolveObserver):
    """Collects the solves of a training step."""

    def __init__(self) -> None:
        self.solves: list[FixedPoint] = []

    def on_solve_end(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        self.solves.append(fixed_point)


def solvers_like(configured: FixedPointSolver) -> Iterator[tuple[str, FixedPointSolver]]:
    """Yields the forward solvers to compare, with the configured solver's tolerances and ``max_steps``.

    Args:
        configured: The configured solver, which is one of them. If its tolerance is 0, its number of steps is part of
            the problem, and there is nothing to compare.

    Yields:
        A name and a solver.
    """
    if configured.tol > 0:
        for kind in SOLVERS:
            yield kind.__name__, _with_tolerances_of(configured, kind)
        yield "Damped(Picard)", Damped(_with_tolerances_of(configured, Picard))
        yield f"{type(configured).__name__} as configured", configured


def taped_solver(configured: FixedPointSolver) -> FixedPointSolver:
    """Returns a differentiable solver: the configured one, or else Picard iteration with its tolerances.

    Args:
        configured: The configured solver.
    """
    if isinstance(configured, Damped):
        return Damped(taped_solver(configured.solver), configured.damping)
    return configured if configured.differentiable else _with_tolerances_of(configured, Picard)


def quasi_newton_solver(configured: FixedPointSolver) -> Broyden:
    """Returns a solver that estimates the inverse Jacobian: the configured one, or else Broyden's method.

    Args:
        configured: The configured solver.
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
    """Measures a forward solver on a training step.

    Args:
        module: The module.
        name: The solver's name.
        solver: The solver.
        arguments: The arguments of the module's ``training_step``.
        batch: The index of the batch.
    """
    observer = _Solves()
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
    """Recommends the forward solver with the fewest steps, if it saves a tenth of the configured solver's steps.

    Args:
        measured: The measurements of all solvers on all batches.

    Returns:
        A sentence, or an empty string.

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
