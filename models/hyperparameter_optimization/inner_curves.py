"""TensorBoard curves and histograms of a hyperparameter optimisation."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.utils.tensorboard import SummaryWriter

from rbp_lightning.diagnostics.log_figure import log_histogram, tensorboard_writers


class HasInnerTraining(Protocol):
    """A module whose training step is an inner training."""

    inner_losses: Mapping[int, Tensor]

    def hyperparameter_values(self) -> Mapping[str, Tensor]:
        """Returns all hyperparameters by name."""


class InnerCurves(Callback):
    """Plots the loss curves of inner trainings in one chart, and histograms of hyperparameters that are vectors.

    Each curve is a TensorBoard run of its own, named after the outer step, in the folder ``inner`` of the run.

    Args:
        every: Outer steps from one curve to the next.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the curve of the outer step, if due."""
        module = cast(HasInnerTraining, pl_module)
        step = trainer.global_step - 1
        if step % self.every:
            return
        for name, values in module.hyperparameter_values().items():
            if values.dim() > 0:
                log_histogram(trainer, f"hyperparameters/{name}", values, step)
        for writer in tensorboard_writers(trainer):
            with SummaryWriter(str(Path(writer.log_dir) / "inner" / f"outer_step_{step:05d}")) as curve:
                for inner_step, loss in module.inner_losses.items():
                    curve.add_scalar("inner/loss", loss, inner_step)
