"""The measurements of the monitor on a single solve."""

import torch
from torch import Tensor

from rbp_lightning.agreement import anywhere, largest_of
from rbp_lightning.diagnostics.monitor_plots import MonitorPlots
from rbp_lightning.errors import UserError
from rbp_lightning.estimators.observer import SolveObserver
from rbp_lightning.failures import Failure
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear import JacobianOperator, LinearSolution, SpectralRadius, norm_bounds, spectral_radius
from rbp_lightning.pytree import Vector
from rbp_lightning.reporting import report
from rbp_lightning.status import Status

NORM_STEPS = 40
"""The most steps for the norm bounds, which are then within a few percent of each other."""

RADIUS_TOLERANCE = 1e-3
"""The largest error assumed for an estimate of the spectral radius that has not converged."""


class MonitorObserver(SolveObserver):
    """Measures the fixed point of a solve, its Jacobian and its adjoint.

    Args:
        plots: Draws the solve; ``None`` if no plots are due.

    Attributes:
        figures: The measured scalars by name, each of the worst sample.
    """

    def __init__(self, plots: MonitorPlots | None) -> None:
        self.figures: dict[str, Tensor] = {}
        self.record = plots is not None
        self._plots = plots
        self._norm_upper: Tensor | None = None

    def on_solve_end(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        """Measures the fixed point and the Jacobian there."""
        radius = spectral_radius(operator)
        # A frozen sample has a Jacobian of 0, not that of F; with a tolerance of 0, few samples are frozen.
        failed = fixed_point.samples(Status.DIVERGED, Status.NAN) & ~(radius.value > 0)
        radius = SpectralRadius(*(torch.where(failed, float("nan"), one) for one in (radius.value, radius.residual)))
        self._add(
            steps=torch.tensor(float(fixed_point.steps)),
            residual=fixed_point.residual,
            converged=fixed_point.samples(Status.CONVERGED, Status.STALLED).float().mean(),
            spectral_radius=radius.value,
            spectral_radius_residual=radius.residual,
        )
        self._add_norm(operator, failed)
        if self._plots is not None:
            self._plots.draw_solve(fixed_point, operator)
        self._check_radius(radius)

    def _add_norm(self, operator: JacobianOperator, failed: Tensor) -> None:
        try:
            bounds = norm_bounds(operator, NORM_STEPS, stop_early=True)
        except UserError:  # the update does not support products with J
            return
        self._norm_upper = torch.where(failed, float("inf"), bounds.upper)
        self._add(norm_lower=bounds.lower, norm_upper=self._norm_upper)

    def _check_radius(self, radius: SpectralRadius) -> None:
        worst = int(radius.value.nan_to_num(-1.0).argmax())
        value, residual = float(radius.value.flatten()[worst]), float(radius.residual.flatten()[worst])
        if anywhere(value + min(residual, RADIUS_TOLERANCE) >= 1 - 10 * torch.finfo(radius.value.dtype).eps):
            report(
                Failure.SPECTRAL_RADIUS,
                f"The spectral radius of the Jacobian at the fixed point is {largest_of(value):.4g} "
                f"(residual of the estimate {residual:.1e})",
            )

    def on_gradient(self, gradient: Vector) -> None:
        """Draws the adjoint residual against the number of products."""
        if self._plots is not None:
            self._plots.draw_adjoint(gradient)

    def on_adjoint(self, solution: LinearSolution) -> None:
        """Records the adjoint's residual and its error bound."""
        residual = solution.residual
        self._add(adjoint_residual=residual)
        if (upper := self._norm_upper) is not None:
            self._add(error_bound=torch.where(upper < 1, residual * (1 + upper) / (1 - upper), float("inf")))

    def _add(self, **figures: Tensor) -> None:
        for name, figure in figures.items():
            finite = figure.detach().float()
            known = finite[~finite.isnan()]
            self.figures[name] = known.max() if known.numel() else finite.max()
