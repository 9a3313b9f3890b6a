"""Errors of gradients, measured on one batch."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from experiments.one_step.tasks import Model
from rbp_lightning import (
    BPTT,
    CGRBP,
    JFB,
    TBPTT,
    ExactAdjoint,
    GradientEstimator,
    Implicit,
    JacobianOperator,
    NeumannRBP,
    PhantomGradient,
    SolveObserver,
)
from rbp_lightning.diagnostics.audit.gradient import copy_of, gradient_of
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear import GMRES, LinearSolution, spectral_radius
from rbp_lightning.solvers import FixedPointSolver

DENSE_SIZE = 1100
"""Largest state whose adjoint equation is solved densely, in elements."""

MEASURED: dict[str, Callable[[FixedPointSolver], GradientEstimator]] = {
    "JFB": lambda solver: JFB(solver),
    "PhantomGradient:5": lambda solver: PhantomGradient(5, solver=solver),
    "NeumannRBP:4": lambda solver: NeumannRBP(4, solver),
    "NeumannRBP:20": lambda solver: NeumannRBP(20, solver),
    "TBPTT:5": lambda solver: TBPTT(5, solver),
    "CGRBP:5": lambda solver: CGRBP(5, tol=0.0, solver=solver),
    "CGRBP:20": lambda solver: CGRBP(20, tol=0.0, solver=solver),
    "GMRES:5": lambda solver: Implicit(GMRES(5, tol=0.0), solver),
    "GMRES:20": lambda solver: Implicit(GMRES(20, tol=0.0), solver),
    "BPTT": lambda solver: BPTT(solver),
}
"""The gradients to compare, by name, as functions of the training's forward solver."""

FIGURES = ["cosine to exact", "error to exact", "cosine to BPTT", "error to BPTT"]
"""What is measured for each."""


class _LastSolve(SolveObserver):
    """Observes where a solve ended, and how exactly the adjoint equation was solved there."""

    radius = residual = adjoint = float("nan")

    def on_solve_end(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        self.radius = float(spectral_radius(operator, 20, 20).value.median())
        self.residual = float(fixed_point.residual.median())

    def on_adjoint(self, solution: LinearSolution) -> None:
        self.adjoint = float(solution.residual.max())


def gradient_errors(model: Model, batch: dict[str, Tensor]) -> dict[str, float]:
    """Compares gradients of the training loss at one state of a training, in float64.

    All are taken at the last iterate of the training's forward solve, whether it is a fixed point or not. The exact
    adjoint solves (I - J^T) z = g there, densely or, for a state of more than ``DENSE_SIZE`` elements, by GMRES; BPTT
    differentiates the steps. A Jacobian penalty is left out, since its gradient is the same for all.

    Args:
        model: The model, with its estimator's forward solver.
        batch: A training batch.

    Returns:
        For each gradient the ``FIGURES`` of all parameters together, as ``"NAME: FIGURE"``; the medians over the
        samples of the ``"spectral radius"`` of J and of the ``"residual"`` of the last solve; and the largest
        ``"adjoint residual"`` of the exact adjoint.
    """
    wide: Any = copy_of(model).double().train()
    wide.jacobian_penalty, wide.log = 0.0, _ignored
    solver = model.estimator.solver
    arguments = [{name: part.double() if part.is_floating_point() else part for name, part in batch.items()}, 0]
    last = _LastSolve()

    def gradient(estimator: GradientEstimator, *observe: Callable[[], SolveObserver]) -> Tensor:
        return gradient_of(copy_of(wide), estimator, arguments, *observe)[0]

    exact = gradient(ExactAdjoint(DENSE_SIZE, solver=solver), lambda: last)
    found = {name: gradient(make(solver)) for name, make in MEASURED.items()}
    figures = {"spectral radius": last.radius, "residual": last.residual, "adjoint residual": last.adjoint}
    for name, one in found.items():
        values = [*compared(one, exact), *compared(one, found["BPTT"])]
        figures |= {f"{name}: {figure}": value for figure, value in zip(FIGURES, values, strict=True)}
    return figures


def compared(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Cosine of the angle between two gradients, and their distance relative to the second one's norm."""
    cosine = torch.nn.functional.cosine_similarity(one, other, dim=0)
    return float(cosine), float((one - other).norm() / other.norm())


def _ignored(*_: Any, **__: Any) -> None:
    pass
