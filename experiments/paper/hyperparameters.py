"""Hyperparameter optimisation of a training by SGD (paper, section 4.3)."""

import statistics
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from benchmarks.peak_memory import PeakMemory
from benchmarks.report import markdown
from experiments.hypergradient import Watch, accuracy
from experiments.paper.findings import EFFECTIVE, UNSTABLE, Finding, best_of_all, less, rivals_at
from experiments.paper.plots import bands, curves_at
from experiments.paper.runs import Curve, Measured, Scale, fit, truncated, values_of, watched
from experiments.runs import Row, estimators_in, label, mean_and_spread

NAME = "Hyperparameters"
STEPS = [10, 50]
# 50 steps of CGRBP take about twice as long as those of the others, and with 10 its loss ends highest.
ESTIMATORS = [name for name in truncated(STEPS) if name != "CGRBP:50"]
FULL = Scale(["configs/paper/hypergrad.yaml"], ESTIMATORS, "", seeds=5)
QUICK = Scale(["configs/hypergrad.yaml"], ESTIMATORS, "--model.hyperparameters=null --trainer.max_epochs=8", seeds=2)
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


def table(rows: list[Row]) -> str:
    """Formats means and standard deviations over the seeds as Markdown.

    Args:
        rows: The runs, from the CSV file.
    """
    lines = []
    for name in estimators_in(rows):
        losses = values_of(rows, name, "loss")
        right = mean_and_spread(values_of(rows, name, "test_accuracy"))
        seconds = statistics.median(values_of(rows, name, "seconds"))
        lines.append([label(name), mean_and_spread(losses, 4), f"{right} %", f"{seconds:.2f}", len(losses)])
    return markdown(["gradient", "outer loss", "test accuracy", "seconds per outer step", "seeds"], lines)


def section(rows: list[Row], folder: Path) -> str:
    """Draws the picture and returns the section of the report.

    Args:
        rows: The runs.
        folder: The folder of the picture.
    """
    bands(curves_at(STEPS, rows), folder / "hyperparameters_curves.png", "outer steps, in percent", "outer loss", "log")
    return f"""A learning rate and a momentum per tensor are learned with the hypergradient of a training by SGD. The
last inner step, at which the adjoint equation is set up, uses all training examples. Mean and standard deviation over
the seeds, and median seconds:

{table(rows)}

![Learning curves against truncation steps](hyperparameters_curves.png)

*Mean over the seeds, with bands from the smallest to the largest value.*"""


def findings(rows: list[Row]) -> list[Finding]:
    """Compares these runs with the paper's findings."""
    losses = {name: values_of(rows, name, "loss") for name in estimators_in(rows)}
    found = []
    for steps in STEPS:
        neumann = f"NeumannRBP:{steps}"
        where = f"outer loss of the hyperparameters, {steps} steps"
        found.append(less(UNSTABLE, where, {neumann: losses[neumann], f"RBP:{steps}": losses[f"RBP:{steps}"]}))
        kind = "Outer loss of the hyperparameters"
        found.append(best_of_all(EFFECTIVE, where, kind, neumann, losses[neumann], rivals_at(steps, losses), digits=4))
    return found
