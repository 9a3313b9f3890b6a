"""Hyperparameter optimisation with each estimator."""

import math
import statistics
import time
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.report import markdown
from experiments.runs import Row, config_keys, estimator_arguments, fit, label, mean_and_spread, run_missing

STEPS = (10, 50, 100)
DEFAULT = ["BPTT", *(f"{name}:{steps}" for name in ("TBPTT", "RBP", "NeumannRBP", "CGRBP") for steps in STEPS)]
MEASURED = ["outer_loss", "first_accuracy", "test_accuracy", "auroc", "seconds"]


class Watch(Callback):
    """Times the outer steps, and tests the network of the first one."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.first_accuracy = math.nan

    def on_train_batch_start(self, *_: Any) -> None:
        """Starts the clock."""
        self.begin = time.perf_counter()

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, *_: Any) -> None:
        """Stops the clock."""
        self.seconds.append(time.perf_counter() - self.begin)
        if len(self.seconds) == 1:
            self.first_accuracy = accuracy(trainer, pl_module)


def accuracy(trainer: Trainer, module: LightningModule) -> float:
    """Test accuracy of the last network, in percent."""
    (split,) = trainer.datamodule.test_dataloader()  # type: ignore[attr-defined]
    mode = module.training
    module.eval()
    found = module(split["images"].to(module.device)).argmax(1).cpu()
    module.train(mode)
    return 100 * float((found == split["labels"]).float().mean())


def optimize(keys: Row) -> dict[str, float]:
    """Runs one hyperparameter optimisation.

    Args:
        keys: Path of a config, estimator as ``NAME`` or ``NAME:STEPS``, seed, and further arguments.

    Returns:
        The values of ``MEASURED``; seconds are the median over all outer steps but the first.
    """
    watch = Watch()
    variant = [f"--data.split_seed={keys['seed']}", *estimator_arguments(keys["estimator"])]
    trainer = fit(keys, *variant, callbacks=[watch]).trainer
    metrics = trainer.callback_metrics
    return {
        "outer_loss": round(float(metrics["train/outer_loss"]), 5),
        "first_accuracy": round(watch.first_accuracy, 2),
        "test_accuracy": round(accuracy(trainer, trainer.lightning_module), 2),
        "auroc": round(float(metrics.get("train/clean_auroc", math.nan)), 4),
        "seconds": round(statistics.median(watch.seconds[1:] or watch.seconds), 3),
    }


def table(rows: list[Row], estimators: list[str]) -> str:
    """Formats means and standard deviations over the seeds as Markdown."""
    header = ["gradient", "outer loss", "test accuracy", "with the initial ones", "AUROC", "seconds per step", "seeds"]
    lines = []
    for estimator in estimators:
        runs = [row for row in rows if row["estimator"] == estimator]
        columns = {name: [float(row[name]) for row in runs] for name in MEASURED}
        loss = mean_and_spread(columns["outer_loss"], digits=4)
        accuracies = [f"{mean_and_spread(columns[name])} %" for name in ("test_accuracy", "first_accuracy")]
        auroc = "–" if math.isnan(columns["auroc"][0]) else mean_and_spread(columns["auroc"], digits=3)  # noqa: RUF001
        seconds = f"{statistics.median(columns['seconds']):.2f}"
        lines.append([label(estimator), loss, *accuracies, auroc, seconds, len(runs)])
    return markdown(header, lines)


def hypergradient(
    task: str = "configs/paper/hypergrad.yaml",
    estimators: list[str] = DEFAULT,
    seeds: PositiveInt = 1,
    overrides: str = "",
    jobs: PositiveInt = 1,
    csv: Path = Path("logs/hypergradient.csv"),
) -> None:
    """Hyperparameter optimisation with each estimator.

    Runs a config of a ``HyperparameterOptimizer`` once for each estimator and seed. Prints a table of means and
    standard deviations: the outer loss of the last outer step; the test accuracy of the last network and, for
    comparison, of the first one, which is trained with the initial hyperparameters; the time of an outer step; and, if
    labels were replaced, how well the example weights separate them (AUROC). Finished runs are kept in a CSV file, and
    repeated only if the config changed; if the code changed, delete the file.

    Args:
        task: Config to run.
        estimators: Estimators to compare, as NAME or NAME:STEPS.
        seeds: Number of seeds, counted from 0.
        overrides: Further arguments of the command line of each training, separated by spaces.
        jobs: Number of trainings at once. More than one would falsify the seconds.
        csv: File of finished runs.
    """
    ours = config_keys(task, overrides)
    wanted = [{**ours, "estimator": name, "seed": str(seed)} for seed in range(seeds) for name in estimators]
    print(table(run_missing(csv, wanted, MEASURED, optimize, jobs), estimators))
