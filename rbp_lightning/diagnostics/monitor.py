"""A callback that monitors the accuracy of fixed points and their gradients during training."""

import math
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from rbp_lightning.diagnostics.log_figure import can_draw, picture_folder
from rbp_lightning.diagnostics.monitor_observer import MonitorObserver
from rbp_lightning.diagnostics.monitor_plots import MonitorPlots
from rbp_lightning.errors import UserError, check_count
from rbp_lightning.estimators.observer import start_observing, stop_observing

FIGURES = ["steps", "residual", "converged", "spectral_radius", "spectral_radius_residual", "norm_lower", "norm_upper"]
FIGURES += ["adjoint_residual", "error_bound"]

LOWER_IS_WORSE = ("converged",)
"""Figures whose worst value is the lowest; of all others it is the highest."""


class EquilibriumMonitor(Callback):
    """Logs, every few training steps, how accurate the fixed point and its gradient are.

    The figures, under ``monitor/``, are the worst over all samples, processes and solves of a step:

    - ``steps`` and ``residual`` of the forward solve, and ``converged``, the share of samples within its tolerance or
      as close to it as rounding allows;
    - ``spectral_radius`` of J at the fixed point, by power iteration and Arnoldi's method, and
      ``spectral_radius_residual``, which is small once the estimate has converged. A spectral radius at or above 1 is
      a failure, handled by the policy. Samples that diverged are left out;
    - ``norm_lower`` and ``norm_upper``, bounds on ||J|| (the upper one fails with a probability of one in a million);
    - ``adjoint_residual``: ||g - (I - J^T) z|| / ||g||, measured for the implicit estimators; for ``TBPTT`` and
      ``BPTT``, the share of g that remains at the start of the tape;
    - ``error_bound``: a bound on the relative error of the adjoint, residual (1 + L) / (1 - L) with L the upper bound
      on the norm; infinite unless L is below 1.

    The monitor changes nothing: its products go through the step that is on the tape anyway, and the update is not
    evaluated again. A cell sharded by ``fully_shard`` therefore has no products with J, and no norm bounds.

    Args:
        every_n_steps: Training steps from one measurement to the next, at least 1.
        plot_every_n_steps: Training steps from one set of plots to the next, a multiple of ``every_n_steps``; 0 for
            none. The plots show a step's first solve: forward and adjoint residual against iteration, the spectrum of
            J for small states and, in TensorBoard, a histogram of steps to convergence. A training of known length is
            also plotted after each quarter and at its last step. Plots need matplotlib.

    Raises:
        UserError: If an argument is out of its range.

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
        self._plots: MonitorPlots | None = None
        self._quarters: set[int] = set()
        self._folder: Path | None = None
        self._observers: list[MonitorObserver] = []
        self._token: object = None
        self._step = 0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the log folder, for which all processes must ask."""
        self._folder = picture_folder(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Computes the steps at which a quarter of the training ends."""
        length, every = trainer.estimated_stepping_batches, self.every_n_steps
        if self.plot_every_n_steps > 0 and can_draw() and math.isfinite(length):
            self._quarters = {int(length) * quarter // 4 // every * every for quarter in (1, 2, 3)} | {int(length) - 1}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts observing if a measurement is due."""
        self._step = trainer.global_step
        ends_quarter = self._step in self._quarters
        # The batches of an accumulated step share its number.
        if (ends_quarter or self._step % self.every_n_steps == 0) and batch_idx % trainer.accumulate_grad_batches == 0:
            plotted = self.plot_every_n_steps > 0 and self._step % self.plot_every_n_steps == 0 and can_draw()
            self._plots = MonitorPlots(trainer, self._folder) if plotted or ends_quarter else None
            self._token = start_observing(self._observer)

    def _observer(self) -> MonitorObserver:
        plots, self._plots = self._plots, None
        self._observers.append(MonitorObserver(plots))
        return self._observers[-1]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the figures."""
        if self._token is None:
            return
        figures = _worst_figures(trainer, [observer.figures for observer in self._observers])
        self._stop()
        if not figures:
            return
        named = {f"monitor/{name}": figure for name, figure in figures.items()}
        for logger in trainer.loggers:
            logger.log_metrics(named, step=self._step)
        trainer.callback_metrics.update({name: torch.tensor(figure) for name, figure in named.items()})

    def _stop(self) -> None:
        if self._token is not None:
            stop_observing(self._token)
        self._token, self._observers = None, []

    def __getstate__(self) -> dict[str, Any]:
        """The state of a copy, which observes nothing yet."""
        return {**vars(self), "_token": None, "_observers": [], "_plots": None}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops observing."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops observing; after an exception the Trainer does not call ``teardown``."""
        self._stop()


def _worst_figures(trainer: Trainer, solves: list[dict[str, Tensor]]) -> dict[str, float]:
    """The worst value of each figure over the solves of all processes, for the figures that this process has."""
    signs = torch.tensor([-1.0 if name in LOWER_IS_WORSE else 1.0 for name in FIGURES])
    rows = [[float(figures.get(name, math.nan)) for name in FIGURES] for figures in ({}, *solves)]
    local = _worst(torch.tensor(rows) * signs)
    gathered = trainer.strategy.all_gather(local.to(trainer.strategy.root_device)).cpu()
    worst = signs * _worst(gathered.reshape(-1, len(FIGURES)))
    known = set().union(*solves)
    return {name: figure for name, figure in zip(FIGURES, worst.tolist(), strict=True) if name in known}


def _worst(rows: Tensor) -> Tensor:
    """The largest value in each column; NaN if all are."""
    known = rows.nan_to_num(-math.inf, math.inf, -math.inf).amax(dim=0)
    return torch.where(rows.isnan().all(dim=0), math.nan, known)
