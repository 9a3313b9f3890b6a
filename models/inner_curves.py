"""What TensorBoard shows of a hyperparameter optimisation beside scalars."""

from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch.utils.tensorboard import SummaryWriter

if TYPE_CHECKING:
    from models.hyperparameter_optimizer import HyperparameterOptimizer


class InnerCurves(Callback):
    """Draws loss curves of inner trainings over each other, and histograms of hyperparameters that are vectors.

    Each curve is a run of its own in the folder ``inner`` of the run's, named by the outer step, so that TensorBoard
    shows them all in one chart.

    Args:
        every: Outer steps between two curves.
    """

    def __init__(self, every: int) -> None:
        self.every = every

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Writes the curve of the outer step that ended."""
        module = cast("HyperparameterOptimizer", pl_module)
        step = trainer.global_step - 1
        if step % self.every or not trainer.is_global_zero:
            return
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger):
                for name, values in module.hyperparameter_values().items():
                    if values.dim() > 0:
                        logger.experiment.add_histogram(f"hyperparameters/{name}", values, step)
                with SummaryWriter(str(Path(logger.log_dir) / "inner" / f"outer_step_{step:05d}")) as curve:
                    for inner_step, loss in module.inner_losses.items():
                        curve.add_scalar("inner/loss", loss, inner_step)
