"""Accuracy on citation graphs by each estimator: ``python -m benchmarks.citation --help``.

Trains each config once for each estimator and seed, tests the checkpoint that did best in validation, and prints a
table of means and standard deviations of the test accuracy; a picture of it is left beside the CSV file. Finished runs
are kept in that file and not done again unless the config changed; delete it when the code did. The seed is that of the
weights, of dropout, and of a random split.
"""

import argparse
import statistics
import sys
import time
from pathlib import Path

import yaml
from lightning.pytorch import Callback
from matplotlib.figure import Figure

from benchmarks.finished_runs import Row, config_keys, estimator_arguments, mean_and_spread, run_missing, seed_count
from rbp_lightning.cli import RBPLightningCLI
from rbp_lightning.cli.errors import one_line_errors

BASELINE = "none"

# From its random start RBP needs more than the 20 steps that are all estimators' default.
DEFAULT = ["BPTT", "TBPTT", "RBP:60", "NeumannRBP", "CGRBP"]


def fit_and_test(keys: Row, variant: list[str], callbacks: list[Callback]) -> dict[str, float]:
    """Trains a config and tests the checkpoint that did best in validation.

    Args:
        keys: Path of the config, seed, and further arguments of the command line.
        variant: Arguments of this run alone.
        callbacks: Callbacks of this run alone.

    Returns:
        Accuracies in percent, and the wall-clock time of the training in seconds.
    """
    seeds = [f"--seed_everything={keys['seed']}", f"--data.split_seed={keys['seed']}"]
    quiet = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    arguments = [f"--config={keys['config']}", *seeds, *quiet, *keys["overrides"].split(), *variant]
    begin = time.perf_counter()
    cli = RBPLightningCLI(args=["fit", *arguments], trainer_defaults={"callbacks": callbacks})
    seconds = time.perf_counter() - begin
    # "best" is that of the first ModelCheckpoint.
    (val,) = cli.trainer.validate(cli.model, cli.datamodule, ckpt_path="best", verbose=False)
    (test,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path="best", verbose=False)
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
    return fit_and_test(keys, variant, [])


def accuracies(rows: list[Row], config: str, estimator: str) -> list[float]:
    """Test accuracies of one cell of the table, a seed each."""
    return [float(row["test_accuracy"]) for row in rows if (row["config"], row["estimator"]) == (config, estimator)]


def label(estimator: str) -> str:
    """The name of a row of the table."""
    name, _, steps = estimator.partition(":")
    return "no propagation" if name == BASELINE else f"{name}(steps={steps})" if steps else name


def table(rows: list[Row], configs: list[str], estimators: list[str]) -> str:
    """Lays the mean and standard deviation over the seeds out as Markdown."""
    lines = [f"| gradient | {' | '.join(configs)} | seeds |", "|---" * (len(configs) + 2) + "|"]
    for estimator in estimators:
        columns = [accuracies(rows, config, estimator) for config in configs]
        cells = [f"{mean_and_spread(values)} %" for values in columns]
        lines.append(f"| {label(estimator)} | {' | '.join(cells)} | {len(columns[0])} |")
    return "\n".join(lines)


def plot(rows: list[Row], configs: list[str], estimators: list[str], path: Path) -> None:
    """Draws the accuracy of every run, and the means, into a PNG file."""
    figure = Figure(figsize=(4 * len(configs), 3.2), layout="constrained")
    panels = figure.subplots(1, len(configs), squeeze=False)
    for panel, config in zip(panels[0], configs, strict=True):
        for place, estimator in enumerate(estimators):
            values = accuracies(rows, config, estimator)
            panel.plot(values, [place] * len(values), "o", alpha=0.4, color="C0")
            panel.plot(statistics.mean(values), place, "|", markersize=20, color="C1")
        panel.set_yticks(range(len(estimators)), [label(name) for name in estimators])
        panel.set_xlabel("test accuracy in %")
        panel.set_title(config)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs what is missing in the CSV file, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--configs", nargs="+", required=True, help="configs to train, a column each")
    parser.add_argument("--estimators", nargs="+", default=DEFAULT, help="estimators to compare, NAME or NAME:STEPS")
    parser.add_argument("--baseline", action="store_true", help="add a linear classifier of the features alone")
    parser.add_argument("--seeds", type=seed_count, default=10, help="how many seeds, from 0")
    parser.add_argument("--csv", type=Path, default=Path("logs/citation.csv"), help="file of finished runs")
    options, overrides = parser.parse_known_args()
    sys.argv = sys.argv[:1]

    estimators = ([BASELINE] if options.baseline else []) + options.estimators
    wanted = [
        {**config_keys(config, overrides), "estimator": name, "seed": str(seed)}
        for config in options.configs
        for seed in range(options.seeds)
        for name in estimators
    ]
    rows = run_missing(options.csv, wanted, ["val_accuracy", "test_accuracy", "seconds"], train_and_test)
    print(table(rows, options.configs, estimators))
    plot(rows, options.configs, estimators, options.csv.with_suffix(".png"))


if __name__ == "__main__":
    with one_line_errors():
        main()
