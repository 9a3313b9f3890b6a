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
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

import yaml
from lightning.pytorch import Callback

import models  # noqa: F401  # so that configs and options find classes by name, as in train.py
from datamodules.files import brief, read_bytes, reading
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, NeumannRBP, UserError
from rbp_lightning.cli import RBPLightningCLI
from rbp_lightning.cli.averaged_weights import stop_averaging
from rbp_lightning.cli.whole_files import written_whole
from rbp_lightning.cli.workers import LiveTable, Pool, slots

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


def estimators_in(rows: list[Row]) -> list[str]:
    """The estimators of runs, in the order of their first runs."""
    return list(dict.fromkeys(row["estimator"] for row in rows))


def label(estimator: str) -> str:
    """The name of ``NAME`` or ``NAME:STEPS`` in tables and pictures."""
    name, _, steps = estimator.partition(":")
    return f"{name}(steps={steps})" if steps else name


def fit(keys: Row, *arguments: str, callbacks: Sequence[Callback] = (), **options: Any) -> RBPLightningCLI:
    """Trains a config. A test of a checkpoint by its Trainer then takes averaged weights, if there are any.

    Args:
        keys: The result of ``config_keys``, and a seed.
        *arguments: Arguments of the command line.
        callbacks: Callbacks in addition to those of the config.
        **options: Further arguments of ``RBPLightningCLI``.
    """
    own = [f"--config={keys['config']}", f"--seed_everything={keys['seed']}"]
    own += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    defaults = {"callbacks": list(callbacks)}
    cli = RBPLightningCLI(
        args=["fit", *own, *keys["overrides"].split(), *arguments], trainer_defaults=defaults, **options
    )
    stop_averaging(cli.trainer)
    return cli


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


@dataclass(frozen=True)
class Run:
    """A run, as a job of a worker process.

    Attributes:
        name: Its name in messages.
        log: The file that its output goes to.
        keys: The columns that identify it.
        run: Executes it.
    """

    name: str
    log: Path
    keys: Row
    run: Callable[[Row], dict[str, Any]]

    def work(self, report: Callable[[Any], bool]) -> Row:
        """Executes it; returns its row."""
        return {**self.keys, **{name: str(value) for name, value in self.run(self.keys).items()}}


class Missing:
    """Hands out runs, and appends the row of each that has finished to a file.

    Args:
        path: The CSV file.
        fields: Its columns.
        left: The runs.
        table: Shows their progress.

    Attributes:
        rows: The rows of the runs that have finished.
        failed: The others, with the files of their output.
    """

    def __init__(self, path: Path, fields: list[str], left: list[Run], table: LiveTable) -> None:
        self._path, self._fields, self._left, self._table = path, fields, left, table
        self.rows: list[Row] = []
        self.failed: list[str] = []

    def next(self) -> Run | None:
        """Returns the next run, or ``None`` after the last."""
        return self._left.pop(0) if self._left else None

    def start(self, job: Run) -> None:
        """Shows that a run has started."""
        self._table.reported(job.name)

    def report(self, job: Run, progress: Any) -> bool:
        """Runs report no progress."""
        return True

    def end(self, job: Run, result: Row) -> None:
        """Appends the row of a run."""
        with self._path.open("a", newline="") as file:
            _write(file, self._fields, [result], header=file.tell() == 0)
        self.rows.append(result)
        self._table.ended(job.name, "finished", "finished")

    def fail(self, job: Run, error: str) -> None:
        """Shows the failure of a run."""
        self.failed.append(f"{job.name} ({job.log})")
        self._table.ended(job.name, "failed", f"failed: {error} ({job.log})")


def run_missing(
    path: Path,
    wanted: list[Row],
    measured: list[str],
    run: Callable[[Row], dict[str, Any]],
    jobs: int | None = None,
    threads: int | None = None,
) -> list[Row]:
    """Executes the runs that are not in a file yet, each in a process, and appends each as soon as it has finished.

    The output of the runs for ``NAME.csv`` goes to files in ``NAME_output`` beside it.

    Args:
        path: The CSV file; in the end, its rows are in the order of ``wanted``, after any others.
        wanted: The columns that identify each run; all have the same keys.
        measured: The names of the values that ``run`` returns.
        run: Executes a run: a function of a module, or a ``functools.partial`` of one.
        jobs: The number of runs at once; ``None`` for one per GPU or, without GPUs, one per core.
        threads: The most threads of a run; ``None`` for an equal share.

    Returns:
        The wanted runs, with their measured values.

    Raises:
        UserError: If the file has other columns or is damaged, or if a run failed, after the others have finished.
    """
    keys = list(wanted[0])
    finished = read_runs(path, keys, measured) if os.path.lexists(path) else []
    found = {_cells(row, keys): row for row in reversed(finished)}
    missing = {_cells(row, keys): row for row in wanted if _cells(row, keys) not in found}
    if missing:
        path.parent.mkdir(parents=True, exist_ok=True)
        table = LiveTable(len(missing))
        source = Missing(path, keys + measured, _runs(path, wanted, list(missing.values()), run), table)
        with table:
            module = getattr(run, "func", run).__module__
            Pool(slots(jobs, len(missing), threads=threads), [__name__, module]).run(source)
        if source.rows:
            places = {_cells(row, keys): place for place, row in enumerate(wanted)}
            rows = sorted(finished + source.rows, key=lambda row: places.get(_cells(row, keys), -1))
            with written_whole(path) as unfinished, unfinished.open("w", newline="") as file:
                _write(file, keys + measured, rows, header=True)
        if source.failed:
            problem = f"{len(source.failed)} of {len(wanted)} runs for {path} failed: {'; '.join(source.failed)}"
            raise UserError(f"{problem}. The same command keeps the others, and tries these again.")
        found |= {_cells(row, keys): row for row in source.rows}
    return [found[_cells(row, keys)] for row in wanted]


def _cells(row: Row, names: list[str]) -> tuple[str, ...]:
    return tuple(row[name] for name in names)


def _runs(path: Path, wanted: list[Row], missing: list[Row], run: Callable[[Row], dict[str, Any]]) -> list[Run]:
    """Names each run after the columns in which the wanted ones differ."""
    *others, last = [name for name in wanted[0] if name != "sha256"]
    names = [*(name for name in others if len({row[name] for row in wanted}) > 1), last]
    runs = []
    for keys in missing:
        name = ", ".join(f"{one}={keys[one]}" for one in names)
        readable = re.sub(r"[^\w.=-]+", "_", name)[-80:]
        digest = hashlib.sha256(json.dumps(keys).encode()).hexdigest()[:8]
        runs.append(Run(name, path.with_name(f"{path.stem}_output") / f"{readable}_{digest}.txt", keys, run))
    return runs


def _write(file: TextIO, fields: list[str], rows: list[Row], header: bool) -> None:
    writer = csv.DictWriter(file, fields)
    if header:
        writer.writeheader()
    writer.writerows(rows)


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
