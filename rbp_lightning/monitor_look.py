"""A monitor's look at one solve."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.observer import SolveObserver
from rbp_lightning.failures import Failure
from rbp_lightning.fixed_point import FixedPoint, Status
from rbp_lightning.flat_jacobian import FlatJacobian
from rbp_lightning.linalg import Linearization
from rbp_lightning.monitor_plots import MonitorPlots
from rbp_lightning.pytree import State, Vector
from rbp_lightning.solvers import Update
from rbp_lightning.spectrum import SpectralRadius, norm_bounds, spectral_radius

NORM_STEPS = 40
"""Most steps of the bounds on the norm, which then are within a few percent of each other."""

RADIUS_TOLERANCE = 1e-3
"""Most that an unsettled estimate of the spectral radius is reckoned to be too small by."""


class MonitorLook(SolveObserver):
    """Measures the fixed point of a solve, its Jacobian and its adjoint.

    Args:
        estimator: What solves, and reports a spectral radius at or above 1.
        module: The module whose buffers an update may change.
        plots: Draws the solve, where it is time to.

    Attributes:
        figures: What was measured, by name, the worst sample's: scalars.
    """

    def __init__(self, estimator: GradientEstimator, module: nn.Module, plots: MonitorPlots | None) -> None:
        self.figures: dict[str, Tensor] = {}
        self._estimator, self._module, self._plots = estimator, module, plots
        self._norm_upper: Tensor | None = None

    def on_solve_end(self, update: Update, initial_state: State, batch_dims: int, fixed_point: FixedPoint) -> None:
        """Looks at the fixed point and at the Jacobian there."""
        devices = [fixed_point.residual.device] if fixed_point.residual.is_cuda else []
        # An update may draw numbers, or count in a buffer how often it is called.
        with torch.random.fork_rng(devices), _buffers_kept(self._module):
            linearization = Linearization.at(update, fixed_point.state, batch_dims)
            jacobian = FlatJacobian(linearization, fixed_point.state)
            radius = spectral_radius(jacobian)
            self._keep(
                steps=torch.tensor(float(fixed_point.steps)),
                residual=fixed_point.residual,
                converged=fixed_point.samples(Status.CONVERGED).float().mean(),
                spectral_radius=radius.value,
                spectral_radius_residual=radius.residual,
            )
            self._keep_norm(jacobian, fixed_point.samples(Status.DIVERGED, Status.NAN))
            if self._plots is not None:
                self._plots.draw_solve(update, initial_state, batch_dims, jacobian)
        self._judge(radius)

    def _keep_norm(self, jacobian: FlatJacobian, failed: Tensor) -> None:
        try:
            bounds = norm_bounds(jacobian, NORM_STEPS, enough=True)
        except UserError:  # the update has no product with J
            return
        # The adjoint of a sample that is held is not that of F: nothing bounds its error.
        self._norm_upper = torch.where(failed, float("inf"), bounds.upper)
        self._keep(norm_lower=bounds.lower, norm_upper=bounds.upper)

    def _judge(self, radius: SpectralRadius) -> None:
        worst = int(radius.value.argmax())
        value, residual = float(radius.value.flatten()[worst]), float(radius.residual.flatten()[worst])
        if value + min(residual, RADIUS_TOLERANCE) >= 1 - 10 * torch.finfo(radius.value.dtype).eps:
            self._estimator.report(
                Failure.SPECTRAL_RADIUS,
                f"The spectral radius of the Jacobian at the fixed point is {value:.4g} (residual of the estimate "
                f"{residual:.1e})",
            )

    def on_gradient(self, gradient: Vector) -> None:
        """Plots how its adjoint equation is solved."""
        if self._plots is not None:
            self._plots.draw_adjoint(gradient)

    def on_adjoint(self, residual: Tensor, products: int) -> None:
        """Keeps the adjoint's residual, and what it bounds."""
        self._keep(adjoint_residual=residual)
        if (upper := self._norm_upper) is not None:
            self._keep(error_bound=torch.where(upper < 1, residual * (1 + upper) / (1 - upper), float("inf")))

    def _keep(self, **figures: Tensor) -> None:
        self.figures.update({name: figure.detach().float().max() for name, figure in figures.items()})


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    before = [(buffer, buffer.clone()) for buffer in module.buffers()]
    yield
    with torch.no_grad():
        for buffer, kept in before:
            if not torch.equal(buffer, kept):
                buffer.copy_(kept)
