"""Image classification by deep equilibrium models, with each estimator."""

import statistics
import time
from pathlib import Path

from jsonargparse.typing import PositiveInt
from torch.nn.functional import cross_entropy

from benchmarks.memory import mebibytes
from benchmarks.peak_memory import peak_bytes
from benchmarks.report import markdown
from experiments.runs import Row, config_keys, estimator_arguments, fit, label, mean_and_spread, run_missing
from rbp_lightning.cli import RBPLightningCLI

ESTIMATORS = ["JFB", "PhantomGradient", "NeumannRBP:5", "CGRBP", "Implicit", "BPTT"]

MEASURED = ["accuracy", "minutes", "peak_bytes", "steps", "parameters"]


def step_peak(cli: RBPLightningCLI) -> int:
    """Peak bytes of the solve and the gradient of a batch, with the trained weights.

    Args:
        cli: The command line, after training an ``EquilibriumClassifier``.
    """
    model, batch = cli.model, next(iter(cli.datamodule.train_dataloader()))
    model.train()
    images, labels = batch["images"].to(model.device), batch["labels"].to(model.device)

    def run() -> None:
        model.zero_grad()
        cross_entropy(model.cell.scores(model(images).state), labels).backward()

    run()  # allocates what stays
    model.zero_grad()
    return peak_bytes(run, model.device)


def train_and_test(keys: Row) -> dict[str, float]:
    """Runs one training, and tests its best checkpoint in validation.

    Args:
        keys: Path of a config of an ``EquilibriumClassifier``, estimator as ``NAME`` or ``NAME:STEPS``, seed, and
            further arguments of the command line.

    Returns:
        Test accuracy, from 0 to 1; CPU minutes of the training; peak bytes of the solve and gradient of a batch; mean
        number of steps of a test solve; and number of parameters.
    """
    begin = time.process_time()
    cli = fit(keys, f"--data.data_seed={keys['seed']}", *estimator_arguments(keys["estimator"]))
    minutes = (time.process_time() - begin) / 60
    best = cli.trainer.checkpoint_callback.best_model_path  # type: ignore[union-attr]  # of the first ModelCheckpoint
    (metrics,) = cli.trainer.test(cli.model, cli.datamodule, ckpt_path=best, verbose=False)
    return {
        "accuracy": metrics["test/accuracy"],
        "minutes": round(minutes, 3),
        "peak_bytes": step_peak(cli),
        "steps": round(metrics["test/steps"], 2),
        "parameters": sum(parameter.numel() for parameter in cli.model.parameters()),
    }


def table(rows: list[Row], estimators: list[str]) -> str:
    """Formats means and standard deviations, or medians, over the seeds as Markdown.

    Args:
        rows: Runs of one config, from the CSV file.
        estimators: Names of the estimators, one for each row.
    """
    lines = []
    for estimator in estimators:
        runs = [row for row in rows if row["estimator"] == estimator]
        accuracy = mean_and_spread([100 * float(row["accuracy"]) for row in runs])
        middle = {name: statistics.median(float(row[name]) for row in runs) for name in MEASURED[1:]}
        cells = [f"{middle['minutes']:.1f}", mebibytes(middle["peak_bytes"]), f"{middle['steps']:.1f}"]
        lines.append([label(estimator), f"{accuracy} %", *cells, f"{middle['parameters']:.0f}", len(runs)])
    columns = ["gradient", "test accuracy", "minutes", "peak MiB", "steps", "parameters", "seeds"]
    return markdown(columns, lines)


def classification(
    task: str = "configs/digits.yaml",
    estimators: list[str] = ESTIMATORS,
    seeds: PositiveInt = 5,
    overrides: str = "",
    jobs: PositiveInt | None = None,
    csv: Path = Path("logs/classification.csv"),
) -> None:
    """Image classification by deep equilibrium models, with each estimator.

    Trains a config once for each estimator and seed, on one thread, and tests the best checkpoint in validation. Prints
    a table: mean and standard deviation of the accuracy over the seeds, and medians of CPU minutes, of the peak memory
    of the solve and gradient of a batch, and of the steps of a solve. Finished runs are kept in a CSV file, and
    repeated only if the config changed; if the code changed, delete the file.

    Args:
        task: Config of an EquilibriumClassifier.
        estimators: Estimators to compare, as NAME or NAME:STEPS.
        seeds: Number of seeds of network and data, counted from 0.
        overrides: Further arguments of the command line of each training, separated by spaces.
        jobs: Number of trainings at once; null for one per GPU or, without GPUs, one per core.
        csv: File of finished runs.
    """
    wanted = [
        {**config_keys(task, overrides), "estimator": name, "seed": str(seed)}
        for name in estimators
        for seed in range(seeds)
    ]
    print(table(run_missing(csv, wanted, MEASURED, train_and_test, jobs, threads=1), estimators))
