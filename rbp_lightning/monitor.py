"""Watching whether fixed points and their gradients can be trusted."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rbp_lightning.errors import UserError, check_count
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.observer import SolveObserver
from rbp_lightning.failures import Failure
from rbp_lightning.fixed_point import FixedPoint, Status
from rbp_lightning.flat_jacobian import FlatJacobian
from rbp_lightning.linalg import Linearization
from rbp_lightning.monitor_plots import MonitorPlots
from rbp_lightning.pytree import State, Vector
from rbp_lightning.solvers import Update
from rbp_lightning.spectrum import norm_bounds, spectral_radius

NORM_STEPS = 40
"""Most steps of the bounds on the norm, which then are within a few percent of each other."""


class EquilibriumMonitor(Callback, SolveObserver):
    """Logs, every so many training steps, how far the fixed point and its gradient can be trusted.

    Under ``monitor/`` come, the worst over the samples and over the solves of a step:

    - ``steps`` and ``residual`` of the forward solve, and ``converged``, the share of samples within its tolerance;
    - ``spectral_radius`` of J at the fixed point, by power iteration or Arnoldi's method, with
      ``spectral_radius_residual``, which is small where the estimate has settled. At or above 1 it is a failure that
      the policy decides about;
    - ``norm_lower`` and ``norm_upper``, bounds on ||J|| from both sides (the upper one holds but for a chance of one
      in a million);
    - ``adjoint_residual``: ||g - (I - J^T) z|| / ||g||, measured for the implicit estimators, and reported by
      ``TBPTT``;
    - ``error_bound``: a bound on the relative error of the adjoint, residual (1 + L) / (1 - L) with L the upper bound
      on the norm; infinite where L is not below 1.

    The products are taken at the fixed point after the forward solve, without a change to what the training computes or
    draws.

    Args:
        every_n_steps: Training steps between two looks, at least 1.
        plot_every_n_steps: Training steps between two sets of plots in TensorBoard (forward and adjoint residual
            against iteration, the spectrum of J for small states, a histogram of steps to convergence), a multiple of
            ``every_n_steps``; 0 draws none.

    Raises:
        UserError: If an argument is out of its range, or the Trainer has no gradient estimator.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        >>> trainer = Trainer(callbacks=[NeumannRBP(), EquilibriumMonitor(every_n_steps=10)], **quiet)
    """

    def __init__(self, every_n_steps: int = 100, plot_every_n_steps: int = 2000) -> None:
        self.every_n_steps = check_count(self, "every_n_steps", every_n_steps, 1)
        self.plot_every_n_steps = check_count(self, "plot_every_n_steps", plot_every_n_steps, 0)
        if plot_every_n_steps % every_n_steps:
            raise UserError(
                f"EquilibriumMonitor: plot_every_n_steps={plot_every_n_steps} must be 0 or a multiple of "
                f"every_n_steps={every_n_steps}."
            )
        self._estimator: GradientEstimator | None = None
        self._figures: dict[str, Tensor] = {}
        self._norm_upper: Tensor | None = None
        self._step = 0
        self._plots: MonitorPlots | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the estimator to watch."""
        estimators = [callback for callback in trainer.callbacks if isinstance(callback, GradientEstimator)]  # type: ignore[attr-defined]
        if not estimators:
            raise UserError("EquilibriumMonitor: the Trainer has no gradient estimator to watch: give it one.")
        self._estimator = estimators[0]

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts to watch where it is time to."""
        assert self._estimator is not None  # set up
        self._step = step = trainer.global_step
        # Several batches of one accumulated step have the same number.
        if step % self.every_n_steps == 0 and batch_idx % trainer.accumulate_grad_batches == 0:
            plots = self.plot_every_n_steps > 0 and step % self.plot_every_n_steps == 0
            self._plots = MonitorPlots(trainer, self._estimator.solver) if plots else None
            self._figures = {}
            self._estimator.observers.append(self)

    def on_solve_end(self, update: Update, initial_state: State, batch_dims: int, fixed_point: FixedPoint) -> None:
        """Looks at the fixed point and at the Jacobian there."""
        assert self._estimator is not None  # only then it is called
        devices = [fixed_point.residual.device] if fixed_point.residual.is_cuda else []
        with torch.random.fork_rng(devices):  # an update may draw numbers
            jacobian = FlatJacobian(Linearization.at(update, fixed_point.state, batch_dims), fixed_point.state)
            radius = spectral_radius(jacobian)
            self._keep(
                steps=torch.tensor(float(fixed_point.steps)),
                residual=fixed_point.residual,
                converged=-fixed_point.samples(Status.CONVERGED).float().mean(),
                spectral_radius=radius.value,
                spectral_radius_residual=radius.residual,
            )
            self._keep_norm(jacobian)
            if self._plots is not None:
                self._plots.draw_solve(update, initial_state, batch_dims, jacobian)
        largest = float(radius.value.max())
        uncertainty = float(radius.residual.flatten()[radius.value.argmax()])
        if largest + uncertainty >= 1:
            self._estimator.report(
                Failure.SPECTRAL_RADIUS,
                f"The spectral radius of the Jacobian at the fixed point is {largest:.4g} (residual of the estimate "
                f"{uncertainty:.1e})",
            )

    def _keep_norm(self, jacobian: FlatJacobian) -> None:
        try:
            bounds = norm_bounds(jacobian, NORM_STEPS, enough=True)
        except UserError:  # the update has no product with J
            return
        self._norm_upper = bounds.upper
        self._keep(norm_lower=bounds.lower, norm_upper=bounds.upper)

    def on_gradient(self, gradient: Vector) -> None:
        """Plots how its adjoint equation is solved."""
        if self._plots is not None:
            self._plots.draw_adjoint(gradient)

    def on_adjoint(self, linearization: Linearization, gradient: Vector, adjoint: Vector) -> None:
        """Measures the adjoint's residual."""
        self._keep_adjoint(linearization.adjoint_residual(gradient, adjoint))

    def _keep_adjoint(self, residual: Tensor) -> None:
        self._keep(adjoint_residual=residual)
        if (upper := self._norm_upper) is not None:
            self._keep(error_bound=torch.where(upper < 1, residual * (1 + upper) / (1 - upper), float("inf")))

    def _keep(self, **figures: Tensor) -> None:
        for name, figure in figures.items():
            worst = figure.detach().float().max()
            self._figures[name] = torch.maximum(self._figures[name], worst) if name in self._figures else worst

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the figures."""
        assert self._estimator is not None  # set up
        if self not in self._estimator.observers:
            return
        self._estimator.observers.remove(self)
        report = self._estimator.adjoint
        if self._figures and "adjoint_residual" not in self._figures and report is not None:
            self._keep_adjoint(report.residual)
        figures = {f"monitor/{name}": float(figure) for name, figure in self._figures.items()}
        if figures:
            figures["monitor/converged"] *= -1  # the smallest share is the worst
            for logger in trainer.loggers:
                logger.log_metrics(figures, step=self._step)
            trainer.callback_metrics.update({name: torch.tensor(figure) for name, figure in figures.items()})
        self._plots = self._norm_upper = None

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops to watch."""
        if self._estimator is not None and self in self._estimator.observers:
            self._estimator.observers.remove(self)
