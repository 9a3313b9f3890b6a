"""Document classification in citation networks with graph neural networks (paper, section 4.2)."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from benchmarks.report import markdown
from experiments.paper.findings import EFFECTIVE, UNSTABLE, Finding, best_of_all, less
from experiments.paper.plots import bands
from experiments.paper.runs import Measured, Scale, curve_text, watched
from experiments.runs import Row, estimator_arguments, estimators_in, fit_and_test, label, mean_and_spread
from rbp_lightning.solvers import Update

NAME = "Documents"
# With its random start, RBP needs more than the default of 20 steps.
ESTIMATORS = ["BPTT", "TBPTT", "RBP", "RBP:60", "NeumannRBP", "CGRBP"]
FULL = Scale(["configs/paper/cora.yaml"], ESTIMATORS, "", seeds=8)
QUICK = Scale(
    ["configs/paper/cora.yaml"],
    ESTIMATORS,
    "--trainer.max_epochs=10 --estimator.solver.max_steps=30",
    seeds=2,
)
MEASURED = ["val_accuracy", "test_accuracy", "seconds", "differences", "warnings", "minutes", "version"]


def measured(update: Update, norms: list[Tensor]) -> Update:
    """Wraps an update, to keep the norm of each change.

    Args:
        update: The update.
        norms: The list that receives the norms.
    """

    def step(state: Tensor) -> Tensor:
        following: Tensor = update(state)
        norms.append((following - state).detach().norm())
        return following

    return step


class DifferenceNorms(Callback):
    """Keeps the norms of the changes, ||h_t - h_(t-1)||, in the solve of the last training step."""

    def __init__(self) -> None:
        self.norms: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Replaces the cell's update by a measured one."""
        if trainer.current_epoch != trainer.max_epochs - 1:  # type: ignore[operator]
            return
        cell: Any = pl_module.cell
        start = cell.start
        self._norms: list[Tensor] = []

        def measured_start(*arguments: Any) -> tuple[Update, Tensor]:
            update, state = start(*arguments)
            return measured(update, self._norms), state

        cell.start = measured_start

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Reads the norms, before the backward pass applies the update again."""
        if trainer.current_epoch == trainer.max_epochs - 1:  # type: ignore[operator]
            self.norms = torch.stack(self._norms).tolist()
            del pl_module.cell.start  # type: ignore[union-attr]  # restores the method of the class


@watched
def run(keys: Row) -> Measured:
    """Trains a network and tests its best checkpoint.

    Args:
        keys: Path of a config, further arguments of the command line, estimator and seed.

    Returns:
        The values of ``MEASURED``: accuracies in percent, seconds of the training, and the norms of the changes of the
        hidden state in the last epoch.
    """
    differences = DifferenceNorms()
    accuracies_found = fit_and_test(keys, estimator_arguments(keys["estimator"]), differences)
    return {**accuracies_found, "differences": curve_text(differences.norms)}


def _accuracies(rows: list[Row], config: str, estimator: str) -> list[float]:
    return [float(row["test_accuracy"]) for row in rows if _is(row, config, estimator)]


def _accuracy_table(rows: list[Row], configs: list[str], estimators: list[str]) -> str:
    lines = []
    for name in estimators:
        columns = [_accuracies(rows, config, name) for config in configs]
        lines.append([label(name), *(f"{mean_and_spread(values)} %" for values in columns), len(columns[0])])
    return markdown(["gradient", *(f"accuracy on {Path(config).stem}" for config in configs), "seeds"], lines)


def accuracies(rows: list[Row]) -> str:
    """Formats the accuracies of all runs of a file as Markdown.

    Args:
        rows: The runs.
    """
    configs, estimators = (list(dict.fromkeys(row[name] for row in rows)) for name in ("config", "estimator"))
    return _accuracy_table(rows, configs, estimators)


def _warnings(rows: list[Row], configs: list[str], estimators: list[str]) -> str:
    """Formats the numbers of epochs with a warning as Markdown."""
    lines = []
    for name in estimators:
        told = [[float(row["warnings"]) for row in rows if _is(row, config, name)] for config in configs]
        lines.append([label(name), *(mean_and_spread(one, 0) for one in told)])
    return markdown(["gradient", *(f"epochs with a warning on {Path(config).stem}" for config in configs)], lines)


def _is(row: Row, config: str, estimator: str) -> bool:
    return (row["config"], row["estimator"]) == (config, estimator)


def section(rows: list[Row], folder: Path) -> str:
    """Draws the pictures and returns the section of the report.

    Args:
        rows: The runs.
        folder: The folder of the pictures.
    """
    configs = list(dict.fromkeys(row["config"] for row in rows))
    estimators = estimators_in(rows)
    curves = {
        config: {label(name): [row["differences"] for row in rows if _is(row, config, name)] for name in estimators}
        for config in configs
    }
    bands(curves, folder / "documents_differences.png", "step t", "||h_t - h_(t-1)||", "log", steps=True)
    return f"""The labels of 1% of the nodes are known, the features are principal components, and propagation is gated.
Test accuracy of the checkpoint with the best validation accuracy, mean and standard deviation over the seeds:

{accuracies(rows)}

Number of epochs with a warning about a solve, per training:

{_warnings(rows, configs, estimators)}

![Convergence of the hidden state](documents_differences.png)

*Change of the hidden state from step to step, in the last epoch of training: mean over the seeds, with bands from the
smallest to the largest value.*"""


def findings(rows: list[Row]) -> list[Finding]:
    """Compares these runs with the paper's findings."""
    found = []
    for config in dict.fromkeys(row["config"] for row in rows):
        graph = Path(config).stem.capitalize()
        values = {name: _accuracies(rows, config, name) for name in ESTIMATORS}
        found.append(
            less(
                UNSTABLE,
                f"accuracy on {graph}, 20 steps",
                {"RBP": values["RBP"], "NeumannRBP": values["NeumannRBP"]},
                digits=2,
            )
        )
        rivals = {name: values[name] for name in ESTIMATORS if name != "NeumannRBP"}
        where, kind = f"accuracy on {graph}", f"Accuracy on {graph}"
        found.append(best_of_all(EFFECTIVE, where, kind, "NeumannRBP", values["NeumannRBP"], rivals, larger=True))
    return found
