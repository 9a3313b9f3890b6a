"""Trainings that are run once and kept in a CSV file."""

import csv
import hashlib
import math
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback
from rich.console import Console
from rich.progress import track

from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, NeumannRBP, UserError
from rbp_lightning.cli import RBPLightningCLI

Row = dict[str, str]

ESTIMATORS = [estimator.__name__ for estimator in (BPTT, TBPTT, RBP, NeumannRBP, CGRBP)]


def config_keys(config: str, overrides: str = "") -> Row:
    """What identifies the trainings of a config.

    Args:
        config: Path of the config; its content counts as well.
        overrides: Further arguments of the command line, separated by spaces.

    Raises:
        UserError: If the config cannot be read.
    """
    try:
        digest = hashlib.sha256(Path(config).read_bytes()).hexdigest()
    except OSError as error:
        raise UserError(f"Config {config!r} cannot be read: {error.strerror}.") from error
    return {"config": config, "sha256": digest, "overrides": overrides}


def estimator_arguments(estimator: str) -> list[str]:
    """Arguments of the command line for ``NAME`` or ``NAME:STEPS``."""
    name, _, steps = estimator.partition(":")
    return [f"--estimator={name}", *([f"--estimator.steps={steps}"] if steps else [])]


def label(estimator: str) -> str:
    """How ``NAME`` or ``NAME:STEPS`` is called in tables and pictures."""
    name, _, steps = estimator.partition(":")
    return f"{name}(steps={steps})" if steps else name


def fit(keys: Row, *arguments: str, callbacks: Sequence[Callback] = (), **options: Any) -> RBPLightningCLI:
    """Trains a config.

    Args:
        keys: What ``config_keys`` returns, and a seed.
        *arguments: Arguments of the command line.
        callbacks: Callbacks beside the config's own.
        **options: Further ones of ``RBPLightningCLI``.
    """
    own = [f"--config={keys['config']}", f"--seed_everything={keys['seed']}"]
    own += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    defaults = {"callbacks": list(callbacks)}
    return RBPLightningCLI(
        args=["fit", *own, *keys["overrides"].split(), *arguments], trainer_defaults=defaults, **options
    )


def mean_and_spread(values: list[float], digits: int = 2) -> str:
    """Mean and standard deviation over the seeds, or in how many the figure is not finite."""
    lost = sum(not math.isfinite(value) for value in values)
    if lost:
        return f"not finite in {lost} of {len(values)}"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def run_missing(path: Path, wanted: list[Row], measured: list[str], run: Callable[[Row], dict[str, Any]]) -> list[Row]:
    """Does the runs that are not in a file yet, and appends each as soon as it is finished.

    Args:
        path: The CSV file.
        wanted: What identifies each run, all of the same keys.
        measured: Names of what ``run`` returns.
        run: Does a run.

    Returns:
        The wanted runs, with what was measured.

    Raises:
        UserError: If the file has other columns.
    """
    fields = [*wanted[0], *measured]
    finished: list[Row] = []
    if path.is_file():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            finished = list(reader)
        if reader.fieldnames != fields:
            raise UserError(f"{path} was written by another version: delete it, or name another file.")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for keys in track(wanted, description=str(path), console=Console(stderr=True)):
        row = next((row for row in finished if keys.items() <= row.items()), None)
        if row is None:
            row = {**keys, **{name: str(value) for name, value in run(keys).items()}}
            with path.open("a", newline="") as file:
                writer = csv.DictWriter(file, fields)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(row)
        rows.append(row)
    return rows
