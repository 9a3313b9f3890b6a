"""A callback that writes predicted classes to a file."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from models.classes_file import write_classes


class PredictedClasses(Callback):
    """Writes the predicted classes of all images to ``classes.txt`` in the log folder, in the order of the split."""

    def on_predict_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discards an earlier prediction."""
        self._predicted: list[Tensor] = []

    def on_predict_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects the classes of a batch, with the indices of its images in the split."""
        self._predicted.append(torch.stack([batch["index"], outputs]))

    def on_predict_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Writes the file."""
        local = torch.cat(self._predicted, 1).cpu()
        shards = [local] * trainer.world_size
        if trainer.world_size > 1:
            # Unlike all_gather, this supports shards of different sizes.
            torch.distributed.all_gather_object(shards, local)
        index, classes = torch.cat(shards, 1)
        in_order = classes.new_empty(int(index.max()) + 1)
        in_order[index] = classes
        write_classes(trainer, in_order)
