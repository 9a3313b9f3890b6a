"""A module that is slow or fails, in a given step and process."""

import os
import signal
import time
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor
from torch.utils.data import DataLoader

from rbp_lightning import UserError

OPTIONS = ["--model=tests.cli.faulty.Faulty", "--data=tests.cli.faulty.Numbers", "--checkpoint.monitor=val/loss"]
OPTIONS += ["--trainer.accelerator=cpu", "--trainer.devices=1", "--trainer.max_epochs=3"]
OPTIONS += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
OPTIONS += ["--trainer.num_sanity_val_steps=0", "--trainer.log_every_n_steps=1", "--trainer.logger=CSVLogger"]
OPTIONS += ["--trainer.logger.save_dir=logs", "--trainer.logger.name=n"]


class Faulty(LightningModule):
    """A small network with a fixed point.

    Args:
        ballast: Number of additional parameters, which make saving a checkpoint slow.
        seconds: Duration of a step.
        at: The step with the fault.
        rank: The process with the fault.
        fault: ``bug`` or ``mistake`` for an exception, ``cycle`` for two exceptions that are each other's cause, or the
            name of a signal that is sent to the process.
    """

    def __init__(self, ballast: int = 0, seconds: float = 0.0, at: int = 5, rank: int = 0, fault: str = "") -> None:
        super().__init__()
        self.layer = torch.nn.Linear(4, 4)
        self.ballast = torch.nn.Parameter(torch.zeros(ballast), requires_grad=False)
        self.seconds, self.at, self.rank, self.fault = seconds, at, rank, fault

    def training_step(self, inputs: Tensor) -> Tensor:
        time.sleep(self.seconds)
        if self.global_step == self.at and self.global_rank == self.rank:
            self.fail()
        update = lambda state: torch.tanh(0.5 * self.layer(state) + inputs)  # noqa: E731
        state: Tensor = self.estimator(update, torch.zeros_like(inputs), batch_dims=1).state
        return state.square().mean()

    def fail(self) -> None:
        if self.fault == "bug":
            raise ZeroDivisionError("a bug")
        if self.fault == "mistake":
            raise UserError("size=-1: must be at least 0.")
        if self.fault == "cycle":
            first, second = OSError(28, "No space left on device"), ValueError("second")
            first.__cause__, second.__cause__ = second, first
            first.__context__, second.__context__ = second, first
            raise first
        if self.fault:
            os.kill(os.getpid(), signal.Signals[self.fault])

    def validation_step(self, inputs: Tensor) -> None:
        if self.trainer.state.fn == "validate":
            self.fail()
        self.log("val/loss", self.layer(inputs).square().mean(), sync_dist=True)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=0.01)


class Numbers(LightningDataModule):
    """Four batches of random numbers."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.randn(8, 4, generator=torch.Generator().manual_seed(0)), batch_size=2)  # type: ignore[arg-type]

    val_dataloader = train_dataloader
