"""The base class of callbacks that log a picture of the first batch of an evaluation."""

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from models.annotated import Pixels
from rbp_lightning.diagnostics.log_figure import log_figure, picture_folder


class FirstBatchPictures(Callback, ABC):
    """Logs a picture of the first batch of each data loader at each validation, test and prediction.

    The picture goes to the loggers and into the log folder, where it replaces the previous one. Without a logger there
    is none.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None

    def content(self, module: Any, outputs: Any, batch: dict[str, Tensor]) -> Any:
        """Computes what is drawn, in all processes, since a sharded module communicates between them.

        Args:
            module: The model.
            outputs: The outputs of the model's step.
            batch: The batch.
        """
        return outputs

    @abstractmethod
    def draw(self, content: Any, batch: dict[str, Tensor], folder: Path) -> tuple[str, Pixels]:
        """Draws a batch, in process 0.

        Args:
            content: The result of ``content``, the outputs of the model's step unless a subclass computes more.
            batch: The batch.
            folder: The log folder, for files of other kinds.

        Returns:
            The picture's name and its pixels.
        """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the log folder, for which all processes must ask."""
        self._folder = picture_folder(trainer)

    def _show(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Logs the picture of the batch, if it is the first one."""
        if batch_idx > 0 or trainer.sanity_checking or self._folder is None:
            return
        content = self.content(pl_module, outputs, batch)
        if not trainer.is_global_zero:
            return
        assert trainer.state.stage is not None  # it is running
        name, picture = self.draw(content, batch, self._folder)
        tag = f"{trainer.state.stage.dataloader_prefix}/{name}"
        log_figure(trainer, tag, picture, trainer.global_step, self._folder)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _show
