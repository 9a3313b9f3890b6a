"""Runs of the paper's experiments."""

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from experiments import runs
from experiments.runs import Row, config_keys, estimator_arguments
from rbp_lightning import ConvergenceWarning
from rbp_lightning.cli import RBPLightningCLI
from rbp_lightning.version import __version__

Measured = dict[str, Any]
"""The values of a run, and its curves as text."""


@dataclass(frozen=True)
class Scale:
    """The extent of a domain's experiment.

    Attributes:
        configs: Paths of the configs.
        estimators: As ``NAME`` or ``NAME:STEPS``.
        overrides: Further arguments of the command line, separated by spaces.
        seeds: Default number of seeds.
    """

    configs: list[str]
    estimators: list[str]
    overrides: str
    seeds: int

    def wanted(self, seeds: int) -> list[Row]:
        """The columns that identify each run; estimators take turns, so that their times are comparable.

        Args:
            seeds: Number of seeds, counted from 0.
        """
        return [
            {**config_keys(config, self.overrides), "estimator": name, "seed": str(seed)}
            for config in self.configs
            for seed in range(seeds)
            for name in self.estimators
        ]


def truncated(steps: list[int]) -> list[str]:
    """The estimators with several numbers of truncation steps; ``BPTT`` has none."""
    return ["BPTT", *(f"{name}:{count}" for count in steps for name in ("TBPTT", "RBP", "NeumannRBP", "CGRBP"))]


def values_of(rows: list[Row], estimator: str, name: str) -> list[float]:
    """The values in a column for an estimator, one for each seed.

    Args:
        rows: The runs of one config.
        estimator: As ``NAME`` or ``NAME:STEPS``.
        name: Name of the column.
    """
    return [float(row[name]) for row in rows if row["estimator"] == estimator]


BARE = ["--trainer.callbacks=null", "--trainer.logger=false", "--trainer.enable_checkpointing=false"]


def fit(keys: Row, *arguments: str, callbacks: list[Callback]) -> RBPLightningCLI:
    """Trains without logs and checkpoints.

    Args:
        keys: Path of a config, further arguments of the command line, estimator and seed.
        *arguments: Arguments of this run alone.
        callbacks: Callbacks of this run alone.
    """
    variant = estimator_arguments(keys["estimator"])
    return runs.fit(keys, *variant, *arguments, *BARE, callbacks=callbacks, save_config_callback=None)


def watched(run: Callable[[Row], Measured]) -> Callable[[Row], Measured]:
    """Adds to a run its number of warnings of failures, its minutes, and the version."""

    @wraps(run)
    def wrapped(keys: Row) -> Measured:
        begin = time.perf_counter()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            measured = run(keys)
        told = sum(issubclass(warning.category, ConvergenceWarning) for warning in caught)
        minutes = round((time.perf_counter() - begin) / 60, 3)
        return {**measured, "warnings": told, "minutes": minutes, "version": __version__}

    return wrapped


class Curve(Callback):
    """Keeps a metric of each training epoch, and the epoch's time.

    Args:
        metric: Name of the metric.
    """

    def __init__(self, metric: str) -> None:
        self.metric = metric
        self.values: list[float] = []
        self.seconds: list[float] = []

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Starts the clock."""
        self._begin = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds an epoch."""
        self.seconds.append(time.perf_counter() - self._begin)
        self.values.append(float(trainer.callback_metrics[self.metric]))

    def text(self, most: int = 100) -> str:
        """The values as text, evenly thinned out to about ``most`` of them."""
        return curve_text(self.values[:: max(1, len(self.values) // most)])


def curve_text(values: list[float]) -> str:
    """Numbers as a cell of a CSV file."""
    return " ".join(f"{value:.4g}" for value in values)


def curve_of(text: str) -> list[float]:
    """The numbers of a cell of a CSV file."""
    return [float(value) for value in text.split()]
