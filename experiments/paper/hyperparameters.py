"""Hyperparameter optimisation of a training by SGD (paper, section 4.3)."""

import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import LightningModule, Trainer
from matplotlib.figure import Figure

from benchmarks.peak_memory import PeakMemory
from benchmarks.report import markdown
from experiments.hypergradient import Watch, accuracy
from experiments.paper.findings import EFFECTIVE, MEMORY, TAPE, TIME, UNSTABLE, Finding, best_of_all, less, rivals_at
from experiments.paper.plots import bands, curves_at
from experiments.paper.runs import Curve, Measured, Scale, fit, truncated, values_of, watched
from experiments.runs import Row, label, mean_and_spread

NAME = "Hyperparameters"
WHERE = "hyperparameters of a training"
SLOPES = 2.0
"""Ratio up to which the times of a step count as alike."""

GROWTH = 0.1
"""Relative difference up to which two amounts of memory count as alike."""

STEPS = [10, 50, 100]
# The adjoint equation is set up on a minibatch, so that a product costs as much as a step of the training.
FULL = Scale(["configs/paper/hypergrad.yaml"], truncated(STEPS), "--model.linearization_batches=1", seeds=3)
QUICK = Scale(
    ["configs/hypergrad.yaml"],
    truncated(STEPS),
    "--model.hyperparameters=null --model.linearization_batches=1 --trainer.max_epochs=8",
    seeds=2,
)
MEASURED = ["loss", "test_accuracy", "seconds", "peak_bytes", "curve", "warnings", "minutes", "version"]


class WatchMemory(Watch):
    """Also measures the memory of the last outer step."""

    peak: PeakMemory

    def __init__(self) -> None:
        super().__init__()
        self._measuring = ExitStack()

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        """Starts measuring."""
        super().on_train_batch_start(trainer, pl_module, *arguments)
        if trainer.current_epoch == trainer.max_epochs - 1:  # type: ignore[operator]
            self.peak = self._measuring.enter_context(PeakMemory(pl_module.device))

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *arguments: Any) -> None:
        """Stops measuring."""
        self._measuring.close()
        super().on_train_batch_end(trainer, pl_module, *arguments)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stops measuring."""
        self._measuring.close()


@watched
def run(keys: Row) -> Measured:
    """Optimises the hyperparameters of a training.

    Args:
        keys: Path of a config, further arguments of the command line, estimator and seed.

    Returns:
        The values of ``MEASURED``: outer loss of the last outer step, test accuracy of its network in percent, median
        seconds of an outer step without the first and the last, peak memory of the last one, and the curve of outer
        losses.
    """
    curve, watch = Curve("train/outer_loss"), WatchMemory()
    cli = fit(keys, f"--data.split_seed={keys['seed']}", callbacks=[curve, watch])
    return {
        "loss": curve.values[-1],
        "test_accuracy": round(accuracy(cli.trainer, cli.model), 2),
        "seconds": round(statistics.median(watch.seconds[1:-1]), 4),
        "peak_bytes": watch.peak.bytes,
        "curve": curve.text(),
    }


def _table(rows: list[Row], estimators: list[str]) -> str:
    lines = []
    for name in estimators:
        loss = mean_and_spread(values_of(rows, name, "loss"), 4)
        right = mean_and_spread(values_of(rows, name, "test_accuracy"))
        seconds = mean_and_spread(values_of(rows, name, "seconds"), 3)
        memory = mean_and_spread([value / 2**20 for value in values_of(rows, name, "peak_bytes")], 1)
        seeds = len(values_of(rows, name, "loss"))
        lines.append([label(name), loss, f"{right} %", seconds, f"{memory} MiB", seeds])
    columns = ["gradient", "outer loss", "test accuracy", "seconds per outer step", "peak memory", "seeds"]
    return markdown(columns, lines)


def _draw_cost(rows: list[Row], path: Path) -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    time_panel, memory_panel = figure.subplots(1, 2)
    for name in ("TBPTT", "RBP", "NeumannRBP", "CGRBP"):
        for panel, measured, unit in ((time_panel, "seconds", 1), (memory_panel, "peak_bytes", 2**20)):
            values = [[value / unit for value in values_of(rows, f"{name}:{steps}", measured)] for steps in STEPS]
            means = [np.mean(one) for one in values]
            panel.errorbar(STEPS, means, [np.std(one) for one in values], marker="o", label=name)
    time_panel.set_ylabel("seconds of an outer step")
    memory_panel.set_ylabel("peak of the memory in MiB")
    for panel in (time_panel, memory_panel):
        panel.set_xlabel("truncation steps")
        panel.set_ylim(bottom=0)
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=100)


def section(rows: list[Row], folder: Path) -> str:
    """Draws the pictures and returns the section of the report.

    Args:
        rows: The runs.
        folder: The folder of the pictures.
    """
    bands(curves_at(STEPS, rows), folder / "hyperparameters_curves.png", "outer steps, in percent", "outer loss", "log")
    _draw_cost(rows, folder / "hyperparameters_cost.png")
    estimators = list(dict.fromkeys(row["estimator"] for row in rows))
    return f"""A learning rate and a momentum per tensor are learned with the hypergradient of a training by SGD. The
adjoint equation is set up on one minibatch. Mean and standard deviation over the seeds:

{_table(rows, estimators)}

![Learning curves against truncation steps](hyperparameters_curves.png)

*Mean over the seeds, with bands from the smallest to the largest value.*

![Time and memory against truncation steps](hyperparameters_cost.png)"""


def _slope(rows: list[Row], name: str, measured: str) -> float:
    """The cost of a truncation step, by least squares."""
    points = np.array([(steps, value) for steps in STEPS for value in values_of(rows, f"{name}:{steps}", measured)])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def _cost(rows: list[Row]) -> list[Finding]:
    few, many = STEPS[0], STEPS[-1]
    seconds = {name: _slope(rows, name, "seconds") for name in ("NeumannRBP", "TBPTT")}
    ratio = seconds["NeumannRBP"] / seconds["TBPTT"]
    figure = f"a step adds {1000 * seconds['NeumannRBP']:.2f} ms to NeumannRBP and {1000 * seconds['TBPTT']:.2f} ms to "
    figure += f"TBPTT, ratio {ratio:.2f}"
    known = min(seconds.values()) > 0
    verdict = ("agrees" if 1 / SLOPES <= ratio <= SLOPES else "disagrees") if known else "inconclusive"
    found = [Finding(TIME, WHERE, verdict, figure)]
    for name, claim, grows in (("NeumannRBP", MEMORY, False), ("TBPTT", TAPE, True)):
        low, high = (np.mean(values_of(rows, f"{name}:{steps}", "peak_bytes")) for steps in (few, many))
        figure = f"the peak is {low / 2**20:.1f} MiB for {few} steps and {high / 2**20:.1f} MiB for {many}"
        if grows:
            middle = np.mean(values_of(rows, f"{name}:{STEPS[1]}", "peak_bytes"))
            straight = low + (high - low) * (STEPS[1] - few) / (many - few)
            figure += f"; {middle / 2**20:.1f} MiB for {STEPS[1]}, where a straight line has {straight / 2**20:.1f} MiB"
            agrees = high > 1.5 * low and abs(middle / straight - 1) < GROWTH
        else:
            agrees = high < (1 + GROWTH) * low
        found.append(Finding(claim, WHERE, "agrees" if agrees else "disagrees", figure))
    return found


def findings(rows: list[Row]) -> list[Finding]:
    """Compares these runs with the paper's findings."""
    losses = {name: values_of(rows, name, "loss") for name in dict.fromkeys(row["estimator"] for row in rows)}
    found = _cost(rows)
    for steps in STEPS:
        neumann = f"NeumannRBP:{steps}"
        where = f"outer loss of the hyperparameters, {steps} steps"
        found.append(less(UNSTABLE, where, {neumann: losses[neumann], f"RBP:{steps}": losses[f"RBP:{steps}"]}))
        kind = "Outer loss of the hyperparameters"
        found.append(best_of_all(EFFECTIVE, where, kind, neumann, losses[neumann], rivals_at(steps, losses), digits=4))
    return found
