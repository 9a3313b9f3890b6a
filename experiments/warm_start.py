"""Propagation steps with a tolerance and with a warm start."""

import statistics
from pathlib import Path

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure

from benchmarks.report import markdown
from experiments.runs import Row, config_keys, fit_and_test, mean_and_spread, run_missing

TOLERANCE = ["--estimator.solver.tol=1.0e-2", "--estimator.solver.check_every=2"]
VARIANTS = {
    "as the config says": [],
    "tolerance": TOLERANCE,
    "tolerance and warm start": [*TOLERANCE, "--model.warm_start=true"],
}
MEASURED = ["steps", "val_accuracy", "test_accuracy"]


class CountSteps(Callback):
    """Keeps the steps of the forward solve in each training epoch."""

    def __init__(self) -> None:
        self.steps: list[float] = []

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Adds an epoch, which has a single batch."""
        self.steps.append(float(trainer.callback_metrics["train/steps"]))


def train_and_test(keys: Row) -> dict[str, float]:
    """Runs one training and tests its best checkpoint.

    Args:
        keys: Path of the config, variant, seed, and further arguments of the command line.

    Returns:
        The values of ``MEASURED``: mean steps per epoch, and accuracies in percent.
    """
    counter = CountSteps()
    found = fit_and_test(keys, VARIANTS[keys["variant"]], counter)
    found["steps"] = round(statistics.mean(counter.steps), 2)
    return {name: found[name] for name in MEASURED}


def table(rows: list[Row]) -> str:
    """Formats means and standard deviations over the seeds as Markdown."""
    lines = []
    for variant in VARIANTS:
        runs = [row for row in rows if row["variant"] == variant]
        steps = mean_and_spread([float(row["steps"]) for row in runs])
        accuracy = mean_and_spread([float(row["test_accuracy"]) for row in runs])
        lines.append([variant, steps, f"{accuracy} %", len(runs)])
    return markdown(["forward solve", "steps per epoch", "test accuracy", "seeds"], lines)


def plot(rows: list[Row], path: Path) -> None:
    """Plots accuracy against steps, with a point for each run, to a PNG file."""
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


def warm_start(
    task: str = "configs/paper/cora.yaml",
    seeds: PositiveInt = 5,
    overrides: str = "",
    jobs: PositiveInt | None = None,
    csv: Path = Path("logs/warm_start.csv"),
) -> None:
    """Propagation steps with a tolerance and with a warm start.

    Trains a config of a citation network as it is, then with a tolerance in place of its number of steps, then also
    with a warm start, and counts the steps of the forward solve per training epoch. Accuracies are those of the
    checkpoint with the best validation accuracy. Finished runs are kept in a CSV file, and repeated only if the config
    changed; if the code changed, delete the file.

    Args:
        task: Config to train.
        seeds: Number of seeds, counted from 0.
        overrides: Further arguments of the command line of each training, separated by spaces.
        jobs: Number of trainings at once; null for one per GPU or, without GPUs, one per core.
        csv: File of finished runs.
    """
    ours = config_keys(task, overrides)
    wanted = [{**ours, "variant": variant, "seed": str(seed)} for seed in range(seeds) for variant in VARIANTS]
    rows = run_missing(csv, wanted, MEASURED, train_and_test, jobs)
    print(table(rows))
    plot(rows, csv.with_suffix(".png"))
