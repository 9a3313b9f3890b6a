"""The reference gradient of an audit."""

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
from rbp_lightning.layer import FixedPointLayer
from rbp_lightning.linear import JacobianOperator, LinearSolution, norm_bounds, spectral_radius
from rbp_lightning.linear.symmetry import is_asymmetric
from rbp_lightning.solvers import FixedPointSolver

DENSE_SIZE = 512
"""The largest sample, in elements, for which the reference and ``Dense`` build matrices."""

SETTLED = 1e-8
"""The largest relative residual, in float64, of a forward solve that counts as converged."""

MAX_STEPS, TOL = 10_000, 1e-12
"""The limits of the reference's forward solver, if the module's own has a tolerance."""


@dataclass(frozen=True)
class Reference:
    """The gradient that the others are compared with, in float64.

    Attributes:
        kind: ``"exact adjoint"``, or ``"BPTT"`` through the configured steps if the forward solve does not converge.
        gradient: The gradient of all parameters as a vector.
        settled: Whether the forward solve converged.
        steps: The steps of the forward solve.
        residual: Its relative residual, of the worst sample.
        adjoint_residual: The residual of the exact adjoint; ``None`` for ``BPTT``.
        spectral_radius: The spectral radius of J at the last iterate, of the worst sample.
        norm: A lower bound on ||J|| there, of the worst sample; ``None`` if products with J are not supported.
        symmetric: Whether J is symmetric there, in all samples.
    """

    kind: str
    gradient: Tensor
    settled: bool
    steps: int
    residual: float
    adjoint_residual: float | None
    spectral_radius: float
    norm: float | None
    symmetric: bool


class _Inspection(SolveObserver):
    """Records the fixed points of a training step and their Jacobians, each figure of the worst sample."""

    def __init__(self) -> None:
        self.solves = 0
        self.steps = 0
        self.residual = self.spectral_radius = 0.0
        self.norm: float | None = 0.0
        self.symmetric = True

    def on_solve_end(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        self.solves += 1
        self.steps = max(self.steps, fixed_point.steps)
        self.residual = _larger(self.residual, fixed_point.residual)
        self.spectral_radius = _larger(self.spectral_radius, spectral_radius(operator, 100, 30).value)
        if self.norm is not None:
            try:
                self.norm = _larger(self.norm, norm_bounds(operator, steps=20).lower)
            except UserError:  # the update does not support products with J
                self.norm = None
        self.symmetric = self.symmetric and not bool(is_asymmetric(operator.as_one_sample()))


class _Adjoints(SolveObserver):
    """Records the adjoint residual of the worst sample."""

    def __init__(self) -> None:
        self.residual: float | None = None

    def on_adjoint(self, solution: LinearSolution) -> None:
        self.residual = _larger(self.residual or 0.0, solution.residual)


def _larger(before: float, values: Tensor) -> float:
    return float(torch.maximum(values.detach().max().cpu(), torch.tensor(before)))  # NaN if any is


def reference(module: LightningModule, arguments: Sequence[Any]) -> Reference:
    """Computes the reference gradient of a training step.

    Args:
        module: The module, whose estimator's solver finds the fixed points.
        arguments: The arguments of its ``training_step``.

    Raises:
        UserError: If the module does not run in float64, has no fixed points, or has a layer with an estimator of its
            own.
    """
    for name, layer in module.named_modules():
        if isinstance(layer, FixedPointLayer) and not layer.takes_estimator:
            raise UserError(
                f"{type(module).__name__}: its layer {name} has an estimator of its own, {layer.estimator!r}, which an "
                "audit cannot compare with others: create the layer without one, and give it to the Trainer."
            )
    configured: GradientEstimator = module.estimator  # type: ignore[assignment]
    # With a tolerance of 0 the number of steps is part of the problem.
    solver = configured.solver
    if solver.tol > 0:
        solver = copy.copy(solver)
        solver.max_steps, solver.tol, solver.atol = MAX_STEPS, TOL, None
    inspection, exact = _Inspection(), ExactAdjoint(DENSE_SIZE, solver=solver)
    wide = copy_of(module).double()
    wide_arguments = [_in_float64(argument) for argument in arguments]
    try:
        loss = float(loss_of(copy_of(wide), exact, wide_arguments, lambda: inspection).detach())
        if not inspection.solves:
            raise UserError(
                f"{type(module).__name__}: its training step solves no fixed point with the Trainer's estimator: "
                "call self.estimator(f, start) in it, or a FixedPointLayer."
            )
        settled = inspection.residual <= SETTLED
        if settled:
            _check_loss(module, arguments, solver, loss)
            adjoints = _Adjoints()
            gradient, _ = gradient_of(wide, exact, wide_arguments, lambda: adjoints)
        else:
            gradient, _ = gradient_of(wide, BPTT(taped_solver(configured.solver)), wide_arguments)
    except RuntimeError as error:
        if "dtype" not in str(error) and "Double" not in str(error):
            raise
        raise UserError(
            f"{type(module).__name__} does not run in float64, which the exact gradient needs: give its tensors the "
            f"dtype of its parameters. ({str(error).splitlines()[0]})"
        ) from error
    return Reference(
        kind="exact adjoint" if settled else "BPTT",
        gradient=gradient,
        settled=settled,
        steps=inspection.steps,
        residual=inspection.residual,
        adjoint_residual=adjoints.residual if settled else None,
        spectral_radius=inspection.spectral_radius,
        norm=inspection.norm,
        symmetric=inspection.symmetric,
    )


def _check_loss(module: LightningModule, arguments: Sequence[Any], solver: FixedPointSolver, wide_loss: float) -> None:
    """Checks that the loss in the module's own precision agrees with that in float64."""
    loss = float(loss_of(copy_of(module), ExactAdjoint(solver=solver), arguments).detach())
    precisions = {parameter.dtype for parameter in module.parameters() if parameter.is_floating_point()}
    device = module.device.type
    if torch.is_autocast_enabled(device):
        precisions.add(torch.get_autocast_dtype(device))
    allowed = 100 * max(torch.finfo(precision).eps for precision in precisions) ** 0.75
    if abs(loss - wide_loss) > allowed * max(abs(wide_loss), 1e-6):
        raise UserError(
            f"{type(module).__name__}: the loss is {wide_loss:.6g} in float64 and {loss:.6g} in the module's own "
            "precision, at the same fixed point, so their gradients cannot be compared. A training step that draws "
            "random numbers draws others in another precision: draw them in float32 and cast them, or audit without."
        )


def _in_float64(argument: Any) -> Any:
    def widened(leaf: Any) -> Any:
        if isinstance(leaf, Tensor):
            return leaf.double() if leaf.is_floating_point() else leaf
        # A torch_geometric graph applies a function to its tensors.
        has_tensors = callable(getattr(leaf, "apply", None)) and not isinstance(leaf, nn.Module)
        return copy.copy(leaf).apply(widened) if has_tensors else leaf

    return apply_to_collection(argument, object, widened, wrong_dtype=(dict, list, tuple))
