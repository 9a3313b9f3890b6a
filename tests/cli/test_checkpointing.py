"""At which steps checkpoints are written."""

from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from rbp_lightning.cli.checkpointing import Checkpointing
from tests.training import QUIET


class Net(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return (self.weight * batch).mean()

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", (self.weight * batch).mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class RecordCheckpoints(Callback):
    """Records the step of each checkpoint and the number of validations before it."""

    def __init__(self) -> None:
        self.validations = 0
        self.found: list[tuple[int, int]] = []

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.validations += not trainer.sanity_checking

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        self.found.append((trainer.global_step, self.validations))


def test_the_checkpoint_of_an_epoch_s_last_batch_follows_its_validation(tmp_path: Path) -> None:
    options = {**QUIET, "enable_checkpointing": True, "default_root_dir": str(tmp_path), "log_every_n_steps": 1}
    saves, checkpointing = RecordCheckpoints(), Checkpointing(every_n_train_steps=1)
    arguments = checkpointing.trainer_arguments(Namespace(callbacks=None, **options))
    trainer = Trainer(**options, max_epochs=2, callbacks=[saves, *arguments["callbacks"]])
    trainer.fit(Net(), DataLoader(torch.ones(3)), DataLoader(torch.ones(1)))
    assert saves.found == [(1, 0), (2, 0), (3, 1), (4, 1), (5, 1), (6, 2)]
