"""Small LightningModules, and helpers to train them and read their logs."""

import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer, seed_everything
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData
from torch import Tensor
from torch.utils.data import DataLoader

from rbp_lightning import ConvergenceWarning, FixedPoint, NeumannRBP, Picard

ROOT = Path(__file__).parents[1]

PROCESSES = int(os.environ.get("RBP_PROCESSES", "2"))
"""How many there are where a training is shared."""

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
"""Options of a Trainer that prints and writes nothing."""

GOOD, SLOW, GROWING = 0.5, 0.95, 3.0
"""Rates of a linear update: one that converges fast, one that needs more than 100 steps, one that diverges."""


class Rates(LightningModule):
    """A linear fixed point whose rates of convergence are the data."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))

    def solve(self, rates: Tensor, added: Tensor) -> FixedPoint:
        return self.estimator(lambda h: rates[:, None] * h + added, torch.zeros(len(rates), 3), batch_dims=1)

    def training_step(self, rates: Tensor, batch_idx: int) -> Tensor:
        return self.solve(rates, self.weight).state.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class Tanh(LightningModule):
    """The fixed point of tanh(0.5 (h W + b) + x), for batches of vectors with 4 entries."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(4, 4)

    def forward(self, inputs: Tensor) -> FixedPoint:
        return self.estimator(
            lambda h: torch.tanh(0.5 * self.linear(h) + inputs), torch.zeros_like(inputs), batch_dims=1
        )

    def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        return self(inputs).state.square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.01)


def neumann() -> NeumannRBP:
    return NeumannRBP(solver=Picard(100, tol=1e-5))


def vectors(count: int = 8, size: int = 4, batch_size: int = 4, dtype: torch.dtype | None = None) -> DataLoader:
    generator = torch.Generator().manual_seed(1)
    return DataLoader(torch.randn(count, size, generator=generator, dtype=dtype), batch_size=batch_size)


def make_trainer(*callbacks: Any, **options: Any) -> Trainer:
    return Trainer(callbacks=list(callbacks), **{**QUIET, "max_epochs": 1, **options})


def fit(module: LightningModule, data: Any, *callbacks: Any, ckpt_path: Any = None, **options: Any) -> Trainer:
    """Trains a module for one epoch, unless the options say otherwise, with the options ``QUIET``."""
    trainer = make_trainer(*callbacks, **options)
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer


def fit_rates(
    rates: Iterable[float], *callbacks: Any, module: LightningModule | None = None, batch_size: int = 1, **options: Any
) -> Any:
    """Trains a module on rates; returns it."""
    seed_everything(0, verbose=False)
    module = Rates() if module is None else module
    fit(module, DataLoader(torch.tensor(list(rates)), batch_size=batch_size), *callbacks, **options)
    return module


def convergence_warnings(run: Callable[[], Any], action: Any = "always") -> list[warnings.WarningMessage]:
    """The convergence warnings of a run, with a warning filter of the given action for them."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("ignore")
        warnings.simplefilter(action, ConvergenceWarning)
        run()
    return [one for one in caught if issubclass(one.category, ConvergenceWarning)]


def read_events(trainer: Trainer) -> EventAccumulator:
    """The complete event file of a Trainer's first logger."""
    unlimited = {"scalars": 0, "images": 0, "histograms": 0, "tensors": 0}
    return EventAccumulator(trainer.loggers[0].log_dir, size_guidance=unlimited).Reload()


def hparams_of(events: EventAccumulator) -> tuple[list[str], list[str], dict[str, Any]]:
    """A run's columns, metrics and values in TensorBoard's HPARAMS tab; all are empty if it is not listed."""
    plugins = {
        tag: HParamsPluginData.FromString(one.plugin_data.content)
        for tag, one in events.summary_metadata.items()
        if tag.startswith("_hparams_/")
    }
    if not plugins:
        return [], [], {}
    experiment = plugins["_hparams_/experiment"].experiment
    info = plugins["_hparams_/session_start_info"].session_start_info.hparams
    values = {name: getattr(value, value.WhichOneof("kind")) for name, value in info.items()}
    return [one.name for one in experiment.hparam_infos], [one.name.tag for one in experiment.metric_infos], values
