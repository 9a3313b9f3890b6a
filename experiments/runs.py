"""Trainings that are run once, with their results in a CSV file."""

import csv
import hashlib
import io
import json
import math
import os
import re
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml
from lightning.pytorch import Callback
from rich.console import Console
from rich.progress import track

from datamodules.files import brief, read_bytes, reading
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, NeumannRBP, UserError
from rbp_lightning.cli import RBPLightningCLI

Row = dict[str, str]

_MEASURED = re.compile(
    r"nan|-?inf|-?\d+(\.\d+)?(e[+-]\d+)?|\d+(\.\d+){2}|[0-9a-f]{16,}|[A-Za-z]{3,}(\([\w=.()-]+\))?", re.ASCII
)
"""A number, a version, a picture in hexadecimal digits, or a word, such as an estimator with its options."""

ESTIMATORS = [estimator.__name__ for estimator in (BPTT, TBPTT, RBP, NeumannRBP, CGRBP)]


def config_keys(config: str, overrides: str = "") -> Row:
    """The columns that identify the trainings of a config.

    Args:
        config: Path of the config; its content is part of the identity, except for comments and layout.
        overrides: Further arguments of the command line, separated by spaces.

    Raises:
        UserError: If the config cannot be read.
    """
    try:
        content = yaml.safe_load(Path(config).read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"Config {config!r} cannot be read: {error.strerror}.") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise UserError(f"Config {config!r} is not YAML ({brief(error)}): correct it.") from error
    digest = hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
    return {"config": config, "sha256": digest, "overrides": overrides}


def estimator_arguments(estimator: str) -> list[str]:
    """Arguments of the command line for ``NAME`` or ``NAME:STEPS``."""
    name, _, steps = estimator.partition(":")
    return [f"--estimator={name}", *([f"--estimator.steps={steps}"] if steps else [])]


def label(estimator: str) -> str:
    """The name of ``NAME`` or ``NAME:STEPS`` in tables and pictures."""
    name, _, steps = estimator.partition(":")
    return f"{name}(steps={steps})" if steps else name


def fit(keys: Row, *arguments: str, callbacks: Sequence[Callback] = (), **options: Any) -> RBPLightningCLI:
    """Trains a config.

    Args:
        keys: The result of ``config_keys``, and a seed.
        *arguments: Arguments of the command line.
        callbacks: Callbacks in addition to those of the config.
        **options: Further arguments of ``RBPLightningCLI``.
    """
    own = [f"--config={keys['config']}", f"--seed_everything={keys['seed']}"]
    own += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    defaults = {"callbacks": list(callbacks)}
    return RBPLightningCLI(
        args=["fit", *own, *keys["overrides"].split(), *arguments], trainer_defaults=defaults, **options
    )


def fit_and_test(keys: Row, variant: list[str], *callbacks: Callback) -> dict[str, float]:
    """Trains a config and tests the best checkpoint in validation.

    Args:
        keys: Path of the config, seed, and further arguments of the command line.
        variant: Arguments of this run alone.
        *callbacks: Callbacks of this run alone.

    Returns:
        Accuracies in percent, and the wall-clock time of the training in seconds.
    """
    begin = time.perf_counter()
    cli = fit(keys, f"--data.split_seed={keys['seed']}", *variant, callbacks=callbacks)
    seconds = time.perf_counter() - begin
    best = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]  # of the first ModelCheckpoint
    (val,) = cli.trainer.validate(cli.model, cli.datamodule, ckpt_path=best, verbose=False)
    (test,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path=best, verbose=False)
    return {
        "val_accuracy": round(100 * val["val/accuracy"], 2),
        "test_accuracy": round(100 * test["test/accuracy"], 2),
        "seconds": round(seconds, 1),
    }


def mean_and_spread(values: list[float], digits: int = 2) -> str:
    """Formats mean and standard deviation over the seeds, or in how many of them the value is not finite."""
    lost = sum(not math.isfinite(value) for value in values)
    if lost:
        return f"not finite in {lost} of {len(values)}"
    spread = f" ± {statistics.stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.{digits}f}{spread}"


def run_missing(path: Path, wanted: list[Row], measured: list[str], run: Callable[[Row], dict[str, Any]]) -> list[Row]:
    """Executes the runs that are not in a file yet, and appends each as soon as it has finished.

    Args:
        path: The CSV file.
        wanted: The columns that identify each run; all have the same keys.
        measured: The names of the values that ``run`` returns.
        run: Executes a run.

    Returns:
        The wanted runs, with their measured values.

    Raises:
        UserError: If the file has other columns, or is damaged.
    """
    fields = [*wanted[0], *measured]
    finished = read_runs(path, list(wanted[0]), measured) if os.path.lexists(path) else []
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


def read_runs(path: Path, keys: list[str], measured: list[str]) -> list[Row]:
    """Reads the runs of a file.

    Args:
        path: The CSV file.
        keys: Names of the columns that identify a run.
        measured: Names of the measured columns.

    Raises:
        UserError: If the file has other columns, or is missing or damaged.
    """
    with reading(path, "a file of finished runs"):
        text = read_bytes(path).decode()
        reader = csv.DictReader(io.StringIO(text, newline=""), strict=True)
        rows: list[Row] = list(reader)
    if reader.fieldnames != keys + measured:
        raise UserError(f"{path} was written by another version: delete it, or name another file.")
    if not text.endswith("\n"):
        raise UserError(f"{path} ends within a row: remove that row, and it is run again.")
    for number, row in enumerate(rows, start=1):
        if row.keys() != {*keys, *measured} or not all(_is_measured(row[name]) for name in measured):
            raise UserError(f"Row {number} of {path} is damaged: remove it, and it is run again.")
    return rows


def _is_measured(cell: str | None) -> bool:
    words = (cell or "").split()
    return bool(words) and all(_MEASURED.fullmatch(word) for word in words)
