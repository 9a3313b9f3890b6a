"""Puzzles solved by networks that think, by each estimator."""

import re
import statistics
import time
from pathlib import Path

import yaml
from jsonargparse.typing import PositiveInt

from benchmarks.report import markdown
from experiments.runs import Row, config_keys, estimator_arguments, fit, label, mean_and_spread, run_missing
from rbp_lightning import UserError


def sizes_of(config: str) -> list[int]:
    """Sizes of the puzzles that a config tests, in the order in which it names them.

    Args:
        config: Path of a config of an ``EquilibriumReasoner``.

    Raises:
        UserError: If its data name none.
    """
    data = yaml.safe_load(Path(config).read_text())["data"].get("init_args", {})
    sizes = [size for name, value in data.items() if re.fullmatch(r"test_\w+", name) for size in value]
    if not sizes:
        raise UserError(f"{config} names no sizes of test puzzles, such as test_lengths or test_sizes: add them.")
    return sizes


def train_and_test(keys: Row) -> dict[str, float]:
    """Runs one training, and the test of the checkpoint that did best in validation.

    Args:
        keys: Path of a config of an ``EquilibriumReasoner``, estimator as ``NAME`` or ``NAME:STEPS``, seed, and further
            arguments of the command line.

    Returns:
        For each size the share of the puzzles solved exactly, from 0 to 1, and the mean residual; and the wall-clock
        time of the training in seconds.
    """
    arguments = [f"--data.data_seed={keys['seed']}", *estimator_arguments(keys["estimator"])]
    begin = time.perf_counter()
    cli = fit(keys, *arguments)
    seconds = time.perf_counter() - begin
    best = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]  # of the first ModelCheckpoint
    metrics = {
        name: value
        for loader in cli.trainer.test(cli.model, cli.datamodule, ckpt_path=best, verbose=False)
        for name, value in loader.items()
    }
    found = {"seconds": round(seconds, 1)}
    for size in sizes_of(keys["config"]):
        found[f"exact_{size}"] = metrics[f"test/exact_{size}"]
        found[f"residual_{size}"] = metrics[f"test/residual_{size}"]
    return found


def table(rows: list[Row], estimators: list[str], sizes: list[int]) -> str:
    """Lays the mean and standard deviation over the seeds out as Markdown.

    Args:
        rows: Runs of one config, as in the CSV file.
        estimators: Names of the estimators, a row each.
        sizes: Sizes of the puzzles, a column each.
    """
    lines = []
    for estimator in estimators:
        runs = [row for row in rows if row["estimator"] == estimator]
        cells = []
        for size in sizes:
            shares = [100 * float(row[f"exact_{size}"]) for row in runs]
            cells.append(f"{mean_and_spread(shares, 1)} % ({sum(share == 100 for share in shares)} of {len(shares)})")
        residual = statistics.median(float(row[f"residual_{sizes[-1]}"]) for row in runs)
        seconds = statistics.median(float(row["seconds"]) for row in runs)
        lines.append([label(estimator), *cells, f"{residual:.1e}", f"{seconds:.0f}"])
    columns = [f"size {size} (seeds with all)" for size in sizes]
    return markdown(["estimator", *columns, f"residual at {sizes[-1]}", "seconds"], lines)


def reasoning(
    task: str = "configs/prefix_sums.yaml",
    estimators: list[str] = ["JFB", "NeumannRBP:4", "TBPTT:5", "BPTT"],
    seeds: PositiveInt = 10,
    overrides: str = "",
    csv: Path = Path("logs/reasoning.csv"),
) -> None:
    """Puzzles of several sizes solved exactly, by each estimator.

    Trains a config once for each estimator and seed, tests the checkpoint that did best in validation, and prints a
    table of the shares of puzzles solved exactly, with in how many seeds that was all of them. Finished runs are kept
    in a CSV file and not done again unless the config changed; delete the file when the code did.

    Args:
        task: Config of an EquilibriumReasoner.
        estimators: Estimators to compare, as NAME or NAME:STEPS.
        seeds: How many seeds, from 0, of the network and of the puzzles.
        overrides: Further arguments of the command line of each training, separated by spaces.
        csv: File of finished runs.
    """
    sizes = sizes_of(task)
    wanted = [
        {**config_keys(task, overrides), "estimator": name, "seed": str(seed)}
        for name in estimators
        for seed in range(seeds)
    ]
    measured = ["seconds", *(f"{name}_{size}" for size in sizes for name in ("exact", "residual"))]
    print(table(run_missing(csv, wanted, measured, train_and_test), estimators, sizes))
