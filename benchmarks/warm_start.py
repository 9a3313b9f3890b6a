"""Propagation steps with a tolerance and a warm start: ``python -m benchmarks.warm_start --help``.

Trains a config of a citation network as it is, then with a tolerance in place of its number of steps, then with a
warm start as well, and counts the steps of the forward solve in a training epoch. Accuracies are of the checkpoint
with the best validation accuracy. Finished runs are kept in a CSV file and not done again unless the config changed.
"""

import argparse
import statistics
import sys
from pathlib import Path

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from benchmarks.citation import fit_and_test
from benchmarks.finished_runs import Row, config_keys, mean_and_spread, run_missing, seed_count
from rbp_lightning.cli.errors import one_line_errors

TOLERANCE = ["--estimator.solver.tol=1.0e-2", "--estimator.solver.check_every=2"]
VARIANTS = {
    "as the config says": [],
    "tolerance": TOLERANCE,
    "tolerance and warm start": [*TOLERANCE, "--model.warm_start=true"],
}


class CountSteps(Callback):
    """Keeps the steps of each training epoch's forward solves."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds an epoch, which is one batch."""
        self.steps.append(float(trainer.callback_metrics["train/steps"]))


def train_and_test(keys: Row) -> dict[str, float]:
    """Runs one training and tests its best checkpoint.

    Args:
        keys: Path of the config, variant, seed, and further arguments of the command line.

    Returns:
        Mean steps of an epoch, and accuracies in percent.
    """
    counter = CountSteps()
    measured = fit_and_test(keys, VARIANTS[keys["variant"]], [counter])
    return {"steps": round(statistics.mean(counter.steps), 2), **measured}


def table(rows: list[Row]) -> str:
    """Lays means and standard deviations over the seeds out as Markdown."""
    lines = ["| forward solve | steps an epoch | test accuracy | seeds |", "|---|---|---|---|"]
    for variant in VARIANTS:
        runs = [row for row in rows if row["variant"] == variant]
        steps = mean_and_spread([float(row["steps"]) for row in runs])
        accuracy = mean_and_spread([float(row["test_accuracy"]) for row in runs])
        lines.append(f"| {variant} | {steps} | {accuracy} % | {len(runs)} |")
    return "\n".join(lines)


def plot(rows: list[Row], path: Path) -> None:
    """Draws steps against accuracy, a point for each run, into a PNG file."""
    figure = Figure(figsize=(5, 3.2), layout="constrained")
    panel = figure.subplots()
    for variant in VARIANTS:
        runs = [row for row in rows if row["variant"] == variant]
        steps, accuracy = ([float(row[name]) for row in runs] for name in ("steps", "test_accuracy"))
        panel.semilogx(steps, accuracy, "o", label=variant)
    panel.set_xlabel("forward steps in a training epoch")
    panel.set_ylabel("test accuracy in %")
    panel.legend()
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs what is missing in the CSV file, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--config", default="configs/paper/cora.yaml", help="config to train")
    parser.add_argument("--seeds", type=seed_count, default=5, help="how many seeds, from 0")
    parser.add_argument("--csv", type=Path, default=Path("logs/warm_start.csv"), help="file of finished runs")
    options, overrides = parser.parse_known_args()
    sys.argv = sys.argv[:1]

    ours = config_keys(options.config, overrides)
    wanted = [{**ours, "variant": variant, "seed": str(seed)} for seed in range(options.seeds) for variant in VARIANTS]
    measured = ["steps", "val_accuracy", "test_accuracy", "seconds"]
    rows = run_missing(options.csv, wanted, measured, train_and_test)
    print(table(rows))
    plot(rows, options.csv.with_suffix(".png"))


if __name__ == "__main__":
    with one_line_errors():
        main()
