"""Watching whether fixed points and their gradients can be trusted."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rbp_lightning.diagnostics.log_figure import can_draw
from rbp_lightning.diagnostics.monitor_observer import MonitorObserver
from rbp_lightning.diagnostics.monitor_plots import MonitorPlots
from rbp_lightning.errors import UserError, check_count
from rbp_lightning.estimators.observer import start_observing, stop_observing


class EquilibriumMonitor(Callback):
    """Logs, every so many training steps, how far the fixed point and its gradient can be trusted.

    Under ``monitor/`` come, the worst over the samples and over the solves of a step:

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
    evaluated again. With several processes the figures are those of the first one's samples.

    Args:
        every_n_steps: Training steps between two observed ones, at least 1.
        plot_every_n_steps: Training steps between two sets of plots in TensorBoard, of a step's first solve (forward
            and adjoint residual against iteration, the spectrum of J for small states, a histogram of steps to
            convergence), a multiple of ``every_n_steps``; 0 draws none. Without matplotlib there are none either.

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
        self._observers: list[MonitorObserver] = []
        self._token: object = None
        self._step = 0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Starts to observe where it is time to."""
        self._step = trainer.global_step
        # Several batches of one accumulated step have the same number.
        if self._step % self.every_n_steps == 0 and batch_idx % trainer.accumulate_grad_batches == 0:
            plotted = self.plot_every_n_steps > 0 and self._step % self.plot_every_n_steps == 0 and can_draw()
            self._plots = MonitorPlots(trainer) if plotted else None
            self._token = start_observing(self._observer)

    def _observer(self) -> MonitorObserver:
        plots, self._plots = self._plots, None
        self._observers.append(MonitorObserver(plots))
        return self._observers[-1]

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Logs the figures."""
        figures: dict[str, float] = {}
        for observer in self._observers:
            for name, worst in observer.figures.items():
                choose = min if name == "converged" else max
                figures[name] = choose(figures.get(name, float(worst)), float(worst))
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
