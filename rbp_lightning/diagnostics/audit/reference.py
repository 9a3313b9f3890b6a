"""The gradient that others are compared with."""

import copy
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor, nn

from rbp_lightning.diagnostics.audit.forward import taped_solver
from rbp_lightning.diagnostics.audit.gradient import copy_of, gradient_of, loss_of
from rbp_lightning.errors import UserError
from rbp_lightning.estimators import BPTT, ExactAdjoint, GradientEstimator, SolveObserver
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear import JacobianOperator, LinearSolution, norm_bounds, spectral_radius
from rbp_lightning.solvers import FixedPointSolver

SETTLED = 1e-8
"""Relative residual, in float64, up to which a forward solve counts as settled."""

MAX_STEPS, TOL = 10_000, 1e-12
"""Of the forward solver of the reference, where the module's own has a tolerance."""


@dataclass(frozen=True)
class Reference:
    """The gradient that others are compared with, in float64.

    Attributes:
        kind: ``"exact adjoint"``, or ``"BPTT"`` through the steps as they are where the forward solve does not settle.
        gradient: All parameters together.
        settled: Whether the forward solve settled.
        steps: Its steps.
        residual: Its relative residual, of the worst sample.
        adjoint_residual: Of the exact adjoint; ``None`` for ``BPTT``.
        spectral_radius: Of J at its last iterate, the worst sample's.
        norm: Lower bound on ||J|| there, the worst sample's; ``None`` where there is no product with J.
    """

    kind: str
    gradient: Tensor
    settled: bool
    steps: int
    residual: float
    adjoint_residual: float | None
    spectral_radius: float
    norm: float | None


class _Inspection(SolveObserver):
    """Looks at the fixed points of a training step and at their Jacobians."""

    def __init__(self) -> None:
        self.solves = 0
        self.steps = 0
        self.residual = self.spectral_radius = 0.0
        self.norm: float | None = 0.0
        self.adjoint_residual: float | None = None

    def on_solve_end(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        self.solves += 1
        self.steps = max(self.steps, fixed_point.steps)
        self.residual = _larger(self.residual, fixed_point.residual)
        self.spectral_radius = _larger(self.spectral_radius, spectral_radius(operator, 100, 30).value)
        if self.norm is not None:
            try:
                self.norm = _larger(self.norm, norm_bounds(operator, steps=20).lower)
            except UserError:  # the update has no product with J
                self.norm = None

    def on_adjoint(self, solution: LinearSolution) -> None:
        self.adjoint_residual = _larger(self.adjoint_residual or 0.0, solution.residual)


def _larger(before: float, values: Tensor) -> float:
    return float(torch.maximum(values.detach().max().cpu(), torch.tensor(before)))  # NaN where there is one


def reference(module: LightningModule, arguments: Sequence[Any]) -> Reference:
    """Takes the reference gradient of a training step.

    Args:
        module: The module, with the estimator whose solver finds the fixed points.
        arguments: Those of its ``training_step``.

    Raises:
        UserError: If the module does not run in float64, or has no fixed points.
    """
    configured: GradientEstimator = module.estimator  # type: ignore[assignment]
    # A tolerance of 0 makes the number of steps a part of the problem.
    solver = configured.solver
    if solver.tol > 0:
        solver = copy.copy(solver)
        solver.max_steps, solver.tol, solver.atol = MAX_STEPS, TOL, None
    inspection, exact = _Inspection(), ExactAdjoint(solver=solver)
    wide = copy_of(module).double()
    wide_arguments = [_in_float64(argument) for argument in arguments]
    try:
        loss = float(loss_of(copy_of(wide), exact, wide_arguments, lambda: inspection).detach())
        if not inspection.solves:
            raise UserError(
                f"{type(module).__name__}: its training step calls no self.estimator, so there is no gradient of a "
                "fixed point to audit."
            )
        settled = inspection.residual <= SETTLED
        if settled:
            _check_loss(module, arguments, solver, loss)
            adjoints = _Inspection()
            gradient, _ = gradient_of(wide, exact, wide_arguments, lambda: adjoints)
        else:
            gradient, _ = gradient_of(wide, BPTT(taped_solver(configured.solver)), wide_arguments)
    except RuntimeError as error:
        if "dtype" not in str(error) and "Double" not in str(error):
            raise
        raise UserError(
            f"{type(module).__name__} does not run in float64, which the exact gradient is taken in: make what it "
            f"computes follow the dtype of its parameters. ({str(error).splitlines()[0]})"
        ) from error
    return Reference(
        kind="exact adjoint" if settled else "BPTT",
        gradient=gradient,
        settled=settled,
        steps=inspection.steps,
        residual=inspection.residual,
        adjoint_residual=adjoints.adjoint_residual if settled else None,
        spectral_radius=inspection.spectral_radius,
        norm=inspection.norm,
    )


def _check_loss(module: LightningModule, arguments: Sequence[Any], solver: FixedPointSolver, wide_loss: float) -> None:
    """Refuses a module whose loss is another one in its own precision, at the same fixed points."""
    loss = float(loss_of(copy_of(module), ExactAdjoint(solver=solver), arguments).detach())
    precisions = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    device = module.device.type
    if torch.is_autocast_enabled(device):
        precisions.add(torch.get_autocast_dtype(device))
    allowed = 100 * max(torch.finfo(precision).eps for precision in precisions) ** 0.75
    if abs(loss - wide_loss) > allowed * max(abs(wide_loss), 1e-6):
        raise UserError(
            f"{type(module).__name__}: the loss is {wide_loss:.6g} in float64 and {loss:.6g} in the module's own "
            "precision, at the same fixed point, so their gradients cannot be compared: a training step that draws "
            "random numbers draws others in another precision; draw them in float32 and cast them, or audit without."
        )


def _in_float64(argument: Any) -> Any:
    def widened(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.double() if leaf.is_floating_point() else leaf
        # A torch_geometric graph hands a function on to the tensors it holds.
        hands_on = callable(getattr(leaf, "apply", None)) and not isinstance(leaf, nn.Module)
        return copy.copy(leaf).apply(widened) if hands_on else leaf

    return apply_to_collection(argument, object, widened, wrong_dtype=(dict, list, tuple))
