"""Puzzles solved by iterated networks, with each estimator."""

import itertools
import re
import statistics
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import yaml
from jsonargparse.typing import PositiveInt

from benchmarks.report import markdown
from experiments.runs import (
    Row,
    config_keys,
    estimator_arguments,
    estimators_in,
    fit,
    label,
    mean_and_spread,
    run_missing,
)
from models.equilibrium_reasoner.curves import curves
from rbp_lightning import UserError


def sizes_of(config: str) -> list[int]:
    """Sizes of the test puzzles of a config, in its order.

    Args:
        config: Path of a config of an ``EquilibriumReasoner``.

    Raises:
        UserError: If the config names none.
    """
    data = yaml.safe_load(Path(config).read_text())["data"].get("init_args", {})
    sizes = [size for name, value in data.items() if re.fullmatch(r"test_\w+", name) for size in value]
    if not sizes:
        raise UserError(
            f"{config} names no sizes of test puzzles: add them, for example as test_lengths or test_sizes."
        )
    return sizes


def train_and_test(keys: Row, also: Sequence[str] = ()) -> dict[str, str]:
    """Runs one training, and tests its best checkpoint in validation.

    Args:
        keys: Path of a config of an ``EquilibriumReasoner``, estimator as ``NAME`` or ``NAME:STEPS``, seed, and further
            arguments of the command line.
        also: Variants of the test puzzles, as arguments of the data such as ``loops=0.1``.

    Returns:
        The wall-clock seconds of the training; the numbers of steps in evaluation; and for each variant and size the
        share solved exactly, from 0 to 1, and the mean residual, after each number of steps.
    """
    arguments = [f"--data.data_seed={keys['seed']}", *estimator_arguments(keys["estimator"])]
    begin = time.perf_counter()
    cli = fit(keys, *arguments)
    seconds = time.perf_counter() - begin
    best = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]  # of the first ModelCheckpoint
    steps = cli.model.budgets
    found = {"seconds": f"{seconds:.1f}", "steps": " ".join(map(str, steps))}
    own = {name: value for name, value in cli.datamodule.hparams.items() if not name.startswith("_")}  # _class_path
    for kind in ["", *also]:
        # A variant may have fewer puzzles than the training needs.
        changed = {"num_train": 1, **yaml.safe_load(kind.replace("=", ": "))} if kind else {}
        data = type(cli.datamodule)(**{**own, **changed})
        loaders = cli.trainer.test(cli.model, data, ckpt_path=best, verbose=False)
        metrics = {name: value for loader in loaders for name, value in loader.items()}
        for size in sizes_of(keys["config"]):
            for what in ("exact", "residual"):
                values = [metrics[f"test/{what}_{size}{ending}"] for ending in cli.model.endings]
                found[column(what, size, kind)] = " ".join(f"{value:.4g}" for value in values)
    return found


def column(what: str, size: int, kind: str = "") -> str:
    """The name of a column of the CSV file.

    Args:
        what: ``exact`` or ``residual``.
        size: Size of the puzzles.
        kind: The variant, as in ``train_and_test``.
    """
    return f"{what}_{size}{kind and '_'}{kind}"


def curve(row: Row, name: str) -> list[float]:
    """The numbers in a cell, one for each number of steps."""
    return [float(value) for value in row[name].split()]


def table(rows: list[Row], estimators: list[str], sizes: list[int], also: Sequence[str] = ()) -> str:
    """Formats means and standard deviations over the seeds as Markdown.

    Args:
        rows: Runs of one config, from the CSV file.
        estimators: Names of the estimators, one for each row.
        sizes: Sizes of the puzzles, one for each column.
        also: Variants of the puzzles, each with a row for each estimator.
    """
    lines = []
    for estimator, kind in itertools.product(estimators, ["", *also]):
        runs = [row for row in rows if row["estimator"] == estimator]
        cells = []
        for size in sizes:
            shares = [100 * curve(row, column("exact", size, kind))[-1] for row in runs]
            cells.append(f"{mean_and_spread(shares, 1)} % ({sum(share == 100 for share in shares)} of {len(shares)})")
        residual = statistics.median(curve(row, column("residual", sizes[-1], kind))[-1] for row in runs)
        seconds = statistics.median(float(row["seconds"]) for row in runs)
        lines.append([label(estimator) + (kind and f", {kind}"), *cells, f"{residual:.1e}", f"{seconds:.0f}"])
    columns = [f"size {size} (seeds with all)" for size in sizes]
    return markdown(["estimator", *columns, f"residual at {sizes[-1]}", "seconds"], lines)


def table_of_file(rows: list[Row]) -> str:
    """Formats all runs of a file as Markdown.

    Args:
        rows: The runs, of one config.
    """
    named = [found.groups() for name in rows[0] if (found := re.fullmatch(r"exact_(\d+)_?(.*)", name))]
    sizes, kinds = (list(dict.fromkeys(found)) for found in zip(*named, strict=True))
    return table(rows, estimators_in(rows), list(map(int, sizes)), kinds[1:])


def plot(rows: list[Row], estimator: str, sizes: list[int], also: Sequence[str], path: Path) -> None:
    """Plots the share solved against the size, and share and residual against the steps, to a PNG file.

    Args:
        rows: Runs of one config, from the CSV file.
        estimator: The estimator to plot.
        sizes: Sizes of the puzzles.
        also: Variants of the puzzles.
        path: The PNG file.
    """
    runs = [row for row in rows if row["estimator"] == estimator]

    def found(what: str, size: int, kind: str = "") -> list[list[float]]:
        return [curve(row, column(what, size, kind)) for row in runs]

    solved, residuals = ({size: found(what, size) for size in sizes} for what in ("exact", "residual"))
    variants = {
        kind: np.transpose([[values[-1] for values in found("exact", size, kind)] for size in sizes]) for kind in also
    }
    figure = curves(curve(runs[0], "steps"), solved, residuals, variants)
    figure.savefig(path, dpi=100)


def reasoning(
    task: str = "configs/prefix_sums.yaml",
    estimators: list[str] = ["JFB", "NeumannRBP:4", "TBPTT:5", "BPTT"],
    seeds: PositiveInt = 10,
    also: list[str] = [],
    overrides: str = "",
    jobs: PositiveInt = 1,
    csv: Path = Path("logs/reasoning.csv"),
) -> None:
    """Puzzles of several sizes solved exactly, with each estimator.

    Trains a config once for each estimator and seed, and tests the best checkpoint in validation. Prints a table of the
    shares of puzzles solved exactly, and of the numbers of seeds that solve all. Finished runs are kept in a CSV file,
    and repeated only if the config changed; if the code changed, delete the file. A picture of the first estimator's
    runs is written next to it.

    Args:
        task: Config of an EquilibriumReasoner.
        estimators: Estimators to compare, as NAME or NAME:STEPS.
        seeds: Number of seeds of network and puzzles, counted from 0.
        also: Variants of the test puzzles, as arguments of the data such as loops=0.1.
        overrides: Further arguments of the command line of each training, separated by spaces.
        jobs: Number of trainings at once. More than one would falsify the seconds.
        csv: File of finished runs.
    """
    sizes = sizes_of(task)
    wanted = [
        {**config_keys(task, overrides), "estimator": name, "seed": str(seed)}
        for name in estimators
        for seed in range(seeds)
    ]
    measured = ["seconds", "steps"]
    measured += [column(what, size, kind) for kind in ["", *also] for size in sizes for what in ("exact", "residual")]
    rows = run_missing(csv, wanted, measured, partial(train_and_test, also=also), jobs)
    print(table(rows, estimators, sizes, also))
    plot(rows, estimators[0], sizes, also, csv.with_suffix(".png"))
