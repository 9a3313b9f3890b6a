"""A module that trains in no time, and fails or kills its sweep if an argument says so."""

import multiprocessing
import os
import signal
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader

from tests.training import Tanh, vectors

NET = ["--model=tests.cli.sweep.own.Net", "--data=tests.cli.sweep.own.Vectors", "--checkpoint.monitor=val/loss"]
NET += ["--trainer.max_epochs=3", "--trainer.accelerator=cpu", "--trainer.log_every_n_steps=1"]


class Net(Tanh):
    """A small network with a fixed point."""

    def __init__(self, rate: float = 0.01, fail: bool = False, kill: str = "") -> None:
        super().__init__()
        self.save_hyperparameters()
        self.rate, self.fail, self.kill = rate, fail, kill

    def on_train_epoch_start(self) -> None:
        sweep = multiprocessing.parent_process()
        if self.kill and self.current_epoch == 1 and not Path(self.kill).exists():
            Path(self.kill).touch()
            os.kill(sweep.pid, signal.SIGKILL)
            while sweep.is_alive():
                time.sleep(0.01)
            time.sleep(0.5)  # time for the signal that ends the orphaned run after its batch

    def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        if self.fail:
            raise RuntimeError("a bug of the module")
        loss = super().training_step(inputs, batch_idx)
        self.log("train/loss", loss)
        self.log("train/level", float(os.environ.get("LEVEL", 0)))
        return loss

    def validation_step(self, inputs: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self(inputs).state.square().mean(), batch_size=len(inputs))

    def test_step(self, inputs: Tensor, batch_idx: int) -> None:
        self.log("test/loss", self(inputs).state.square().mean(), batch_size=len(inputs))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.rate)


class Vectors(LightningDataModule):
    """The same vectors for every stage."""

    def train_dataloader(self) -> DataLoader:
        return vectors()

    val_dataloader = test_dataloader = train_dataloader
