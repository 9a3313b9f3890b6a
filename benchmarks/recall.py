"""Recall of the associative memory by each estimator: ``python -m benchmarks.recall --help``.

Trains a config once for each estimator and seed, tests it on corruptions that neither training nor validation saw, and
prints a table of means and standard deviations, and of the median time. Finished runs are kept in a CSV file and not
done again unless the config changed; delete the file when the code did.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

from benchmarks.finished_runs import ESTIMATORS, Row, config_keys, mean_and_spread, run_missing, seed_count
from rbp_lightning.cli import RBPLightningCLI
from rbp_lightning.cli.errors import one_line_errors


def train_and_test(keys: Row) -> dict[str, float]:
    """Runs one training and its test.

    Args:
        keys: Path of a config of a ``HopfieldMemory``, estimator, seed, and further arguments of the command line.

    Returns:
        The metrics, shares from 0 to 1, and the wall-clock time of the training in seconds.
    """
    begin = time.perf_counter()
    seeds = [f"--seed_everything={keys['seed']}", f"--data.corruption_seed={keys['seed']}"]
    arguments = [f"--config={keys['config']}", f"--estimator={keys['estimator']}", *seeds, *keys["overrides"].split()]
    cli = RBPLightningCLI(args=["fit", *arguments])
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
    lines = ["| estimator | recalled exactly | wrong pixels | seconds | seeds |", "|---|---|---|---|---|"]
    for estimator in estimators:
        runs = [row for row in rows if row["estimator"] == estimator]
        shares = [[100 * float(row[name]) for row in runs] for name in ("exact_recall", "pixel_error")]
        cells = [f"{mean_and_spread(share)} %" for share in shares]
        seconds = statistics.median(float(row["seconds"]) for row in runs)
        lines.append(f"| {estimator} | {' | '.join(cells)} | {seconds:.0f} | {len(runs)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing in the CSV file and prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/hopfield.yaml", help="config to train")
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS, help="estimators to compare")
    parser.add_argument("--seeds", type=seed_count, default=3, help="how many seeds, from 0")
    parser.add_argument("--csv", type=Path, default=Path("logs/recall.csv"), help="file of finished runs")
    options, overrides = parser.parse_known_args()
    sys.argv = sys.argv[:1]

    ours = config_keys(options.config, overrides)
    wanted = [
        {**ours, "estimator": name, "seed": str(seed)} for name in options.estimators for seed in range(options.seeds)
    ]
    rows = run_missing(options.csv, wanted, ["exact_recall", "pixel_error", "seconds"], train_and_test)
    print(table(rows, options.estimators))


if __name__ == "__main__":
    with one_line_errors():
        main()
