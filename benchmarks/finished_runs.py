"""Runs that are done once and kept in a CSV file."""

import argparse
import csv
import hashlib
import math
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, NeumannRBP

Row = dict[str, str]

ESTIMATORS = [estimator.__name__ for estimator in (BPTT, TBPTT, RBP, NeumannRBP, CGRBP)]


def seed_count(text: str) -> int:
    """Reads a number of seeds from the command line."""
    if int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text} is no number of seeds: it must be at least 1")
    return int(text)


def config_keys(config: str, overrides: list[str]) -> Row:
    """What identifies the runs of a config: its path, its content, and further arguments of the command line."""
    digest = hashlib.sha256(Path(config).read_bytes()).hexdigest()
    return {"config": config, "sha256": digest, "overrides": " ".join(overrides)}


def estimator_arguments(estimator: str) -> list[str]:
    """Arguments of the command line for ``NAME`` or ``NAME:STEPS``."""
    name, _, steps = estimator.partition(":")
    return [f"--estimator={name}", *([f"--estimator.steps={steps}"] if steps else [])]


def median_and_quartiles(values: Sequence[float], digits: int = 2) -> str:
    """Median, and quartiles in brackets, of at least two values."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"  # noqa: RUF001


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
    """
    fields = [*wanted[0], *measured]
    finished: list[Row] = []
    if path.is_file():
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            finished = list(reader)
        if reader.fieldnames != fields:
            sys.exit(f"error: {path} was written by another version: delete it, or give another --csv.")
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = []
    for keys in tqdm(wanted, desc=str(path), unit="run"):
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
