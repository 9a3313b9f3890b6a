"""Recall of the associative memory by each estimator: ``python -m benchmarks.recall --help``.

Trains a config once for each estimator and seed, tests it on corruptions that neither training nor validation saw, and
prints a table of means and standard deviations, and of the median time. Finished runs are kept in a CSV file and not
done again unless the config changed; delete the file when the code did.
"""

import argparse
import csv
import hashlib
import statistics
import sys
import time
from pathlib import Path

from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, NeumannRBP
from rbp_lightning.cli import RBPLightningCLI

ESTIMATORS = [estimator.__name__ for estimator in (BPTT, TBPTT, RBP, NeumannRBP, CGRBP)]
FIELDS = ["config", "sha256", "overrides", "estimator", "seed", "exact_recall", "pixel_error", "seconds"]


def train_and_test(config: str, overrides: list[str], estimator: str, seed: int) -> dict[str, float]:
    """Runs one training and its test.

    Args:
        config: Path of a YAML config of a ``HopfieldMemory``.
        overrides: Further arguments of the command line.
        estimator: Name of the estimator.
        seed: Seed of weights and corruptions.

    Returns:
        The metrics, shares from 0 to 1, and the wall-clock time of the training in seconds.
    """
    begin = time.perf_counter()
    seeds = [f"--seed_everything={seed}", f"--data.corruption_seed={seed}"]
    cli = RBPLightningCLI(args=["fit", f"--config={config}", f"--estimator={estimator}", *seeds, *overrides])
    seconds = time.perf_counter() - begin
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
    return {
        "exact_recall": metrics["test/exact_recall"],
        "pixel_error": metrics["test/pixel_error"],
        "seconds": round(seconds, 1),
    }


def table(rows: list[dict[str, str]]) -> str:
    """Lays the mean and standard deviation over the seeds out as Markdown.

    Args:
        rows: Runs of one config, as in the CSV file.
    """
    lines = ["| estimator | recalled exactly | wrong pixels | seconds | seeds |", "|---|---|---|---|---|"]
    for estimator in ESTIMATORS:
        runs = [row for row in rows if row["estimator"] == estimator]
        if runs:
            cells = []
            for field in ("exact_recall", "pixel_error"):
                values = [100 * float(row[field]) for row in runs]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.2f}{spread} %")
            seconds = statistics.median(float(row["seconds"]) for row in runs)
            lines.append(f"| {estimator} | {' | '.join(cells)} | {seconds:.0f} | {len(runs)} |")
    return "\n".join(lines)


def main() -> None:
    """Runs what is missing in the CSV file and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/hopfield.yaml", help="config to train")
    parser.add_argument("--estimators", nargs="+", choices=ESTIMATORS, default=ESTIMATORS, help="estimators to compare")
    parser.add_argument("--seeds", type=int, default=3, help="how many seeds, from 0")
    parser.add_argument("--csv", type=Path, default=Path("logs/recall.csv"), help="file of finished runs")
    options, overrides = parser.parse_known_args()
    sys.argv = sys.argv[:1]

    rows: list[dict[str, str]] = []
    if options.csv.is_file():
        with options.csv.open(newline="") as file:
            reader = csv.DictReader(file)
            rows = list(reader)
        if reader.fieldnames != FIELDS:
            sys.exit(f"error: {options.csv} was written by another version: delete it, or give another --csv.")
    options.csv.parent.mkdir(parents=True, exist_ok=True)
    wanted = [(estimator, str(seed)) for estimator in options.estimators for seed in range(options.seeds)]
    digest = hashlib.sha256(Path(options.config).read_bytes()).hexdigest()
    ours = {"config": options.config, "sha256": digest, "overrides": " ".join(overrides)}
    for estimator, seed in wanted:
        keys = {**ours, "estimator": estimator, "seed": seed}
        if not any(all(row[name] == value for name, value in keys.items()) for row in rows):
            found = train_and_test(options.config, overrides, estimator, int(seed))
            rows.append({**keys, **{name: str(value) for name, value in found.items()}})
            with options.csv.open("a", newline="") as file:
                writer = csv.DictWriter(file, FIELDS)
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerow(rows[-1])
    print(table([row for row in rows if all(row[name] == value for name, value in ours.items())]))


if __name__ == "__main__":
    main()
