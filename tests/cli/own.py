"""A user's module and data module, which fail where an argument says."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from lightning.pytorch.loggers import Logger
from torch import Tensor
from torch.utils.data import DataLoader

OPTIONS = ["--trainer.max_epochs=1", "--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false"]
OPTIONS += ["--trainer.enable_model_summary=false", "--trainer.log_every_n_steps=1"]


class Net(LightningModule):
    """A small network with a fixed point."""

    def __init__(self, size: int = 4, fail: str = "") -> None:
        super().__init__()
        self.layer = torch.nn.Linear(size, size)
        self.fail = fail
        if fail == "value":
            raise ValueError("a bug of the constructor")
        if fail == "file":
            Path("/nowhere/weights").read_text()
        if fail == "type":
            self.size = None + 1  # type: ignore[operator]

    def training_step(self, inputs: Tensor) -> Tensor:
        if self.fail == "hook":
            Path("/nowhere/table").read_text()
        update = lambda state: torch.tanh(0.5 * self.layer(state) + inputs)  # noqa: E731
        if self.fail == "update":
            update = lambda state: state.add_(1)  # noqa: E731
        state: Tensor = self.estimator(update, torch.zeros_like(inputs), batch_dims=1).state
        return state.square().mean()

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Inputs(LightningDataModule):
    """A batch of ones."""

    def __init__(self, fail: bool = False) -> None:
        super().__init__()
        if fail:
            raise OSError("a bug of the data")

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(torch.ones(8, 4), batch_size=8)  # type: ignore[arg-type]


class FolderlessLogger(Logger):
    """A logger like W&B's: one folder for all runs, and a version for each."""

    runs = 0

    def __init__(self, save_dir: str = "offline") -> None:
        super().__init__()
        self._save_dir = save_dir
        FolderlessLogger.runs += 1
        self._version = f"run{FolderlessLogger.runs}"

    @property
    def name(self) -> str:
        return "project"

    @property
    def version(self) -> str:
        return self._version

    @property
    def save_dir(self) -> str:
        return self._save_dir

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        pass

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        pass
