"""Runs that are done once and kept in a CSV file."""

import csv
import sys
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

Row = dict[str, str]


def run_missing(
    path: Path, wanted: list[Row], measured: list[str], run: Callable[[Row], dict[str, float]]
) -> list[Row]:
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
