"""Accuracy on citation graphs by each estimator."""

import statistics
import time
from pathlib import Path

import yaml
from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback
from matplotlib.figure import Figure

from benchmarks.report import markdown
from experiments.runs import Row, config_keys, estimator_arguments, fit, label, mean_and_spread, run_missing

BASELINE = "none"

# From its random start RBP needs more than the 20 steps that are all estimators' default.
DEFAULT = ["BPTT", "TBPTT", "RBP:60", "NeumannRBP", "CGRBP"]


def fit_and_test(keys: Row, variant: list[str], *callbacks: Callback) -> dict[str, float]:
    """Trains a config and tests the checkpoint that did best in validation.

    Args:
        keys: Path of the config, seed, and further arguments of the command line.
        variant: Arguments of this run alone.
        *callbacks: Callbacks of this run alone.

    Returns:
        Accuracies in percent, and the wall-clock time of the training in seconds.
    """
    begin = time.perf_counter()
    cli = fit(keys, f"--data.split_seed={keys['seed']}", *variant, callbacks=callbacks)
    seconds = time.perf_counter() - begin
    best = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]  # of the first ModelCheckpoint
    (val,) = cli.trainer.validate(cli.model, cli.datamodule, ckpt_path=best, verbose=False)
    (test,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path=best, verbose=False)
    return {
        "val_accuracy": round(100 * val["val/accuracy"], 2),
        "test_accuracy": round(100 * test["test/accuracy"], 2),
        "seconds": round(seconds, 1),
    }


def train_and_test(keys: Row) -> dict[str, float]:
    """Runs one training and its test.

    Args:
        keys: Those of ``fit_and_test``, and the estimator, as ``NAME`` or ``NAME:STEPS``, or ``"none"`` for the linear
            classifier.

    Returns:
        As ``fit_and_test``.
    """
    variant = estimator_arguments(keys["estimator"])
    if keys["estimator"] == BASELINE:
        sizes = yaml.safe_load(Path(keys["config"]).read_text())["model"]["init_args"]["cell"]["init_args"]
        variant = [f"--model.{name}={sizes[name]}" for name in ("num_features", "num_classes")]
        variant = ["--model=LinearClassifier", *variant]
    return fit_and_test(keys, variant)


def accuracies(rows: list[Row], config: str, estimator: str) -> list[float]:
    """Test accuracies of one cell of the table, a seed each."""
    return [float(row["test_accuracy"]) for row in rows if (row["config"], row["estimator"]) == (config, estimator)]


def row_title(estimator: str) -> str:
    """The title of a row of the table."""
    return "no propagation" if estimator == BASELINE else label(estimator)


def table(rows: list[Row], configs: list[str], estimators: list[str]) -> str:
    """Lays the mean and standard deviation over the seeds out as Markdown."""
    lines = []
    for estimator in estimators:
        columns = [accuracies(rows, config, estimator) for config in configs]
        lines.append([row_title(estimator), *(f"{mean_and_spread(values)} %" for values in columns), len(columns[0])])
    return markdown(["gradient", *configs, "seeds"], lines)


def plot(rows: list[Row], configs: list[str], estimators: list[str], path: Path) -> None:
    """Draws the accuracy of every run, and the means, into a PNG file."""
    figure = Figure(figsize=(4 * len(configs), 3.2), layout="constrained")
    panels = figure.subplots(1, len(configs), squeeze=False)
    for panel, config in zip(panels[0], configs, strict=True):
        for place, estimator in enumerate(estimators):
            values = accuracies(rows, config, estimator)
            panel.plot(values, [place] * len(values), "o", alpha=0.4, color="C0")
            panel.plot(statistics.mean(values), place, "|", markersize=20, color="C1")
        panel.set_yticks(range(len(estimators)), [row_title(name) for name in estimators])
        panel.set_xlabel("test accuracy in %")
        panel.set_title(config)
    figure.savefig(path, dpi=120)


def citation(
    configs: list[str] = ["configs/cora.yaml"],
    estimators: list[str] = DEFAULT,
    baseline: bool = False,
    seeds: PositiveInt = 10,
    overrides: str = "",
    csv: Path = Path("logs/citation.csv"),
) -> None:
    """Accuracy on citation graphs by each estimator.

    Trains each config once for each estimator and seed, tests the checkpoint that did best in validation, and prints a
    table of means and standard deviations of the test accuracy; a picture of it is left beside the CSV file. Finished
    runs are kept in that file and not done again unless the config changed; delete it when the code did. The seed is
    that of the weights, of dropout, and of a random split.

    Args:
        configs: Configs to train, a column each.
        estimators: Estimators to compare, NAME or NAME:STEPS.
        baseline: Whether to add a linear classifier of the features alone.
        seeds: How many seeds, from 0.
        overrides: Further arguments of the command line of each training, separated by spaces.
        csv: File of finished runs.
    """
    compared = [BASELINE] * baseline + estimators
    wanted = [
        {**config_keys(config, overrides), "estimator": name, "seed": str(seed)}
        for config in configs
        for seed in range(seeds)
        for name in compared
    ]
    rows = run_missing(csv, wanted, ["val_accuracy", "test_accuracy", "seconds"], train_and_test)
    print(table(rows, configs, compared))
    plot(rows, configs, compared, csv.with_suffix(".png"))
