"""Recall of the associative memory by each estimator."""

import statistics
import time
from pathlib import Path
from typing import Literal

from jsonargparse.typing import PositiveInt

from benchmarks.report import markdown
from experiments.runs import ESTIMATORS, Row, config_keys, fit, mean_and_spread, run_missing


def train_and_test(keys: Row) -> dict[str, float]:
    """Runs one training and its test.

    Args:
        keys: Path of a config of a ``HopfieldMemory``, estimator, seed, and further arguments of the command line.

    Returns:
        The metrics, shares from 0 to 1, and the wall-clock time of the training in seconds.
    """
    begin = time.perf_counter()
    cli = fit(keys, f"--estimator={keys['estimator']}", f"--data.corruption_seed={keys['seed']}")
    seconds = time.perf_counter() - begin
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return {
        "exact_recall": metrics["test/exact_recall"],
        "pixel_error": metrics["test/pixel_error"],
        "seconds": round(seconds, 1),
    }


def table(rows: list[Row], estimators: list[str]) -> str:
    """Lays the mean and standard deviation over the seeds out as Markdown.

    Args:
        rows: Runs of one config, as in the CSV file.
        estimators: Names of the estimators, a row each.
    """
    lines = []
    for estimator in estimators:
        runs = [row for row in rows if row["estimator"] == estimator]
        shares = [[100 * float(row[name]) for row in runs] for name in ("exact_recall", "pixel_error")]
        seconds = statistics.median(float(row["seconds"]) for row in runs)
        cells = [f"{mean_and_spread(share)} %" for share in shares]
        lines.append([estimator, *cells, f"{seconds:.0f}", len(runs)])
    return markdown(["estimator", "recalled exactly", "wrong pixels", "seconds", "seeds"], lines)


def recall(
    task: str = "configs/hopfield.yaml",
    estimators: list[Literal["BPTT", "TBPTT", "RBP", "NeumannRBP", "CGRBP", "EquilibriumPropagation"]] = ESTIMATORS,  # type: ignore[assignment]
    seeds: PositiveInt = 3,
    overrides: str = "",
    csv: Path = Path("logs/recall.csv"),
) -> None:
    """Recall of the associative memory by each estimator.

    Trains a config once for each estimator and seed, tests it on corruptions that neither training nor validation saw,
    and prints a table of means and standard deviations, and of the median time. Finished runs are kept in a CSV file
    and not done again unless the config changed; delete the file when the code did.

    Args:
        task: Config to train.
        estimators: Estimators to compare.
        seeds: How many seeds, from 0.
        overrides: Further arguments of the command line of each training, separated by spaces.
        csv: File of finished runs.
    """
    wanted = [
        {**config_keys(task, overrides), "estimator": name, "seed": str(seed)}
        for name in estimators
        for seed in range(seeds)
    ]
    print(table(run_missing(csv, wanted, ["exact_recall", "pixel_error", "seconds"], train_and_test), list(estimators)))
