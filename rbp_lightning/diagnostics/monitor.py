"""Watching whether fixed points and their gradients can be trusted."""

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

LEAST_IS_WORST = ("converged",)
"""Figures of which the least is the worst, and not the largest."""


class EquilibriumMonitor(Callback):
    """Logs, every so many training steps, how far the fixed point and its gradient can be trusted.

    Under ``monitor/`` come, the worst over the samples of all processes and over the solves of a step:

    - ``steps`` and ``residual`` of the forward solve, and ``converged``, the share of samples within its tolerance, or
      as near to it as rounding allows;
    - ``spectral_radius`` of J at the fixed point, by power iteration and Arnoldi's method, with
      ``spectral_radius_residual``, which is small where the estimate has settled. At or above 1 it is a failure that
      the policy decides about. Samples that diverged have none;
    - ``norm_lower`` and ``norm_upper``, bounds on ||J|| from both sides (the upper one holds but for a chance of one
      in a million);
    - ``adjoint_residual``: ||g - (I - J^T) z|| / ||g||, measured for the implicit estimators; of ``TBPTT`` and
      ``BPTT``, what is left of g where the tape begins;
    - ``error_bound``: a bound on the relative error of the adjoint, residual (1 + L) / (1 - L) with L the upper bound
      on the norm; infinite where L is not below 1.

    It observes and changes nothing: products are taken through the step that is on the tape anyway, and no update is
    evaluated again. Of a cell that ``fully_shard`` has sharded there are thus no products with J, and no bounds.

    Args:
        every_n_steps: Training steps between two observed ones, at least 1.
        plot_every_n_steps: Training steps between two sets of plots of a step's first solve (forward and adjoint
            residual against iteration, the spectrum of J for small states; in TensorBoard a histogram of steps to
            convergence as well), a multiple of ``every_n_steps``; 0 draws none. A training whose length is known has
            some after each quarter, and of its last step, too. Without matplotlib there are none.

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
        """Finds the log folder, for which all processes have to ask."""
        self._folder = picture_folder(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Finds the steps that end a quarter of the training."""
        length, every = trainer.estimated_stepping_batches, self.every_n_steps
        if self.plot_every_n_steps > 0 and can_draw() and math.isfinite(length):
            self._quarters = {int(length) * quarter // 4 // every * every for quarter in (1, 2, 3)} | {int(length) - 1}

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts to observe where it is time to."""
        self._step = trainer.global_step
        ends_quarter = self._step in self._quarters
        # Several batches of one accumulated step have the same number.
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
        figures = _worst_of_all(trainer, [observer.figures for observer in self._observers])
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
        """What a copy, or a process that is spawned, takes along."""
        return {**vars(self), "_token": None, "_observers": [], "_plots": None}

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Stops to observe."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops to observe; the Trainer tears nothing down then."""
        self._stop()


def _worst_of_all(trainer: Trainer, of_solves: list[dict[str, Tensor]]) -> dict[str, float]:
    """The worst of each figure that this process has, over its solves and those of all processes."""
    signs = torch.tensor([-1.0 if name in LEAST_IS_WORST else 1.0 for name in FIGURES])
    rows = [[float(figures.get(name, math.nan)) for name in FIGURES] for figures in ({}, *of_solves)]
    own = _worst(torch.tensor(rows) * signs)
    everyone = trainer.strategy.all_gather(own.to(trainer.strategy.root_device)).cpu()
    worst = signs * _worst(everyone.reshape(-1, len(FIGURES)))
    known = set().union(*of_solves)
    return {name: figure for name, figure in zip(FIGURES, worst.tolist(), strict=True) if name in known}


def _worst(rows: Tensor) -> Tensor:
    """The largest in each column, NaN where all are."""
    known = rows.nan_to_num(-math.inf, math.inf, -math.inf).amax(dim=0)
    return torch.where(rows.isnan().all(dim=0), math.nan, known)
