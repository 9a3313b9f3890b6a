"""Accuracy on citation graphs by each estimator: ``python -m benchmarks.citation --help``.

Trains each config once for each estimator and seed, tests the checkpoint of the best validation accuracy, and prints a
table of means and standard deviations of the test accuracy; a picture of it is left beside the CSV file. Finished runs
are kept in that file and not done again unless the config changed; delete it when the code did. The seed is that of the
weights, of dropout, and of a random split.
"""

import argparse
import hashlib
import statistics
import sys
import time
from pathlib import Path

import matplotlib
import yaml

matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

from benchmarks.finished_runs import Row, run_missing  # noqa: E402
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, NeumannRBP  # noqa: E402
from rbp_lightning.cli import RBPLightningCLI  # noqa: E402

ESTIMATORS = [estimator.__name__ for estimator in (BPTT, TBPTT, RBP, NeumannRBP, CGRBP)]
BASELINE = "none"
LABELS = {BASELINE: "no propagation"}


def train_and_test(keys: Row) -> dict[str, float]:
    """Runs one training and tests its best checkpoint.

    Args:
        keys: Path of the config, estimator or ``"none"`` for the linear classifier, seed, and further arguments of the
            command line.

    Returns:
        Accuracies in percent, and the wall-clock time of the training in seconds.
    """
    config, seed = keys["config"], keys["seed"]
    arguments = ["fit", f"--config={config}", f"--seed_everything={seed}", f"--data.split_seed={seed}"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
    arguments += keys["overrides"].split()
    if keys["estimator"] == BASELINE:
        sizes = yaml.safe_load(Path(config).read_text())["model"]["init_args"]["cell"]["init_args"]
        arguments += ["--model=LinearClassifier", f"--model.num_features={sizes['num_features']}"]
        arguments += [f"--model.num_classes={sizes['num_classes']}"]
    else:
        arguments += [f"--estimator={keys['estimator']}"]
    begin = time.perf_counter()
    cli = RBPLightningCLI(args=arguments)
    seconds = time.perf_counter() - begin
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path="best", verbose=False)
    best = cli.trainer.checkpoint_callback.best_model_score
    return {
        "val_accuracy": round(100 * float(best), 2),
        "test_accuracy": round(100 * metrics["test/accuracy"], 2),
        "seconds": round(seconds, 1),
    }


def accuracies(rows: list[Row], config: str, estimator: str) -> list[float]:
    """Test accuracies of one cell of the table, a seed each."""
    return [float(row["test_accuracy"]) for row in rows if (row["config"], row["estimator"]) == (config, estimator)]


def table(rows: list[Row], configs: list[str], estimators: list[str]) -> str:
    """Lays the mean and standard deviation over the seeds out as Markdown."""
    lines = [f"| gradient | {' | '.join(configs)} | seeds |", "|---" * (len(configs) + 2) + "|"]
    for estimator in estimators:
        cells = []
        for config in configs:
            values = accuracies(rows, config, estimator)
            spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
            cells.append(f"{statistics.mean(values):.2f}{spread} %")
        lines.append(f"| {LABELS.get(estimator, estimator)} | {' | '.join(cells)} | {len(values)} |")
    return "\n".join(lines)


def plot(rows: list[Row], configs: list[str], estimators: list[str], path: Path) -> None:
    """Draws the accuracy of every run, and the means, into a PNG file."""
    figure, panels = plt.subplots(1, len(configs), figsize=(4 * len(configs), 3.2), squeeze=False, layout="constrained")
    for panel, config in zip(panels[0], configs, strict=True):
        for place, estimator in enumerate(estimators):
            values = accuracies(rows, config, estimator)
            panel.plot(values, [place] * len(values), "o", alpha=0.4, color="C0")
            panel.plot(statistics.mean(values), place, "|", markersize=20, color="C1")
        panel.set_yticks(range(len(estimators)), [LABELS.get(name, name) for name in estimators])
        panel.set_xlabel("test accuracy in %")
        panel.set_title(config)
    figure.savefig(path, dpi=120)


def main() -> None:
    """Runs what is missing in the CSV file, prints the table and draws the picture."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--configs", nargs="+", required=True, help="configs to train, a column each")
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS, help="estimators to compare")
    parser.add_argument("--baseline", action="store_true", help="add a linear classifier of the features alone")
    parser.add_argument("--seeds", type=int, default=10, help="how many seeds, from 0")
    parser.add_argument("--csv", type=Path, default=Path("logs/citation.csv"), help="file of finished runs")
    options, overrides = parser.parse_known_args()
    sys.argv = sys.argv[:1]

    estimators = ([BASELINE] if options.baseline else []) + options.estimators
    digests = {config: hashlib.sha256(Path(config).read_bytes()).hexdigest() for config in options.configs}
    wanted = [
        {"config": config, "sha256": digests[config], "overrides": " ".join(overrides), "estimator": name, "seed": seed}
        for config in options.configs
        for seed in map(str, range(options.seeds))
        for name in estimators
    ]
    rows = run_missing(options.csv, wanted, ["val_accuracy", "test_accuracy", "seconds"], train_and_test)
    print(table(rows, options.configs, estimators))
    plot(rows, options.configs, estimators, options.csv.with_suffix(".png"))


if __name__ == "__main__":
    main()
