"""A module whose Jacobians are known, and helpers to train it with a monitor."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import Tensor
from torch.utils.data import DataLoader

from rbp_lightning import Picard
from tests.training import fit, read_events, vectors

SOLVER = Picard(500, tol=1e-12)


class Known(LightningModule):
    """The fixed point of tanh(h W + x + b) in float64, trained with a learning rate of 0."""

    def __init__(self, norm: float = 0.8, batch_dims: int = 1) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        weight = torch.randn(6, 6, generator=generator, dtype=torch.float64)
        self.weight = torch.nn.Parameter(norm * weight / torch.linalg.matrix_norm(weight, 2))
        self.added = torch.nn.Parameter(torch.zeros(6, dtype=torch.float64))
        self.batch_dims = batch_dims
        self.states: list[Tensor] = []

    def training_step(self, drive: Tensor, batch_idx: int) -> Tensor:
        start = torch.zeros_like(drive)
        result = self.estimator(lambda h: torch.tanh(h @ self.weight + drive + self.added), start, self.batch_dims)
        self.states.append(result.state.detach())
        return (result.state * torch.linspace(0.5, 2, 6)).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def jacobians(self) -> Tensor:
        """The Jacobian of each sample of the first batch, at its fixed point."""
        slope = 1 - self.states[0] ** 2
        return slope[:, :, None] * self.weight.detach().T


def drives(count: int = 12) -> DataLoader:
    return vectors(count, 6, 3, torch.float64)


def fit_logged(
    module: LightningModule, data: Any, folder: Path, *callbacks: Any, **options: Any
) -> tuple[Trainer, EventAccumulator]:
    """Trains the module; returns the Trainer and its event file."""
    logged = {"logger": TensorBoardLogger(folder, name="run"), "log_every_n_steps": 1, **options}
    trainer = fit(module, data, *callbacks, **logged)
    return trainer, read_events(trainer)


def monitor_metrics(events: EventAccumulator) -> dict[str, float]:
    """The first value of each of the monitor's metrics in an event file."""
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("monitor/")]
    return {tag.removeprefix("monitor/"): events.Scalars(tag)[0].value for tag in tags}
