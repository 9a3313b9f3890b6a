"""Associative memory with continuous Hopfield networks (paper, section 4.1)."""

import statistics
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks.report import markdown
from experiments.paper.findings import EFFECTIVE, UNSTABLE, Finding, best_of_all, less, rivals_at
from experiments.paper.plots import bands, curves_at
from experiments.paper.runs import Curve, Measured, Scale, fit, truncated, values_of, watched
from experiments.runs import Row, estimators_in, label, mean_and_spread

NAME = "Associative memory"
LEVELS = (0.1, 0.3, 0.5, 0.7)
SHOWN = 3
"""Index of the pattern whose recall is drawn."""

STEPS = [10, 20, 30]
FULL = Scale(["configs/paper/hopfield.yaml"], truncated(STEPS), "", seeds=3)
QUICK = Scale(
    ["configs/paper/hopfield.yaml"],
    truncated(STEPS),
    "--trainer.max_epochs=60 --data.source=digits --model.num_pixels=64 --model.num_hidden=128",
    seeds=2,
)
ERRORS = [f"wrong_pixels_{level:g}" for level in LEVELS]
MEASURED = ["loss", *ERRORS, "seconds", "curve", "corrupted", "recalled", "warnings", "minutes", "version"]


@watched
def run(keys: Row) -> Measured:
    """Trains a network, and lets it recall images at several levels of corruption.

    Args:
        keys: Path of a config, further arguments of the command line, estimator and seed.

    Returns:
        The values of ``MEASURED``: last training loss, percentage of wrong pixels at each level, median seconds per
        epoch, loss curve, and for each level a corrupted image and its recall, in hexadecimal digits.
    """
    curve = Curve("train/loss")
    arguments = [f"--data.corruption_seed={keys['seed']}", "--trainer.limit_val_batches=0"]
    cli = fit(keys, *arguments, callbacks=[curve])
    seconds = round(statistics.median(curve.seconds[1:]), 4)
    measured: Measured = {"loss": curve.values[-1], "seconds": seconds, "curve": curve.text()}
    corrupted, recalled = [], []
    for name, level in zip(ERRORS, LEVELS, strict=True):
        cli.datamodule.level = level
        (metrics,) = cli.trainer.test(cli.model, cli.datamodule, verbose=False)
        measured[name] = round(100 * metrics["test/pixel_error"], 4)
        batch = cli.datamodule.corrupt(next(iter(cli.datamodule.test_dataloader())), "test")
        with torch.no_grad():
            found = cli.model.predict_step(batch, 0)
        corrupted.append(_bits(batch["corrupted"][SHOWN]))
        recalled.append(_bits(found[SHOWN]))
    return {**measured, "corrupted": " ".join(corrupted), "recalled": " ".join(recalled)}


def _bits(image: torch.Tensor) -> str:
    return np.packbits(image.numpy().astype(bool)).tobytes().hex()


def _images(text: str) -> list[np.ndarray]:
    images = [np.unpackbits(np.frombuffer(bytes.fromhex(bits), np.uint8)) for bits in text.split()]
    return [image.reshape(int(image.size**0.5), -1) for image in images]


def _table(rows: list[Row], estimators: list[str]) -> str:
    levels = [f"{100 * level:.0f}% erased" for level in LEVELS]
    lines = []
    for name in estimators:
        losses = values_of(rows, name, "loss")
        errors = [f"{mean_and_spread(values_of(rows, name, error))} %" for error in ERRORS]
        seconds = mean_and_spread(values_of(rows, name, "seconds"), 3)
        told = mean_and_spread(values_of(rows, name, "warnings"), 0)
        lines.append([label(name), mean_and_spread(losses, 4), *errors, seconds, told, len(losses)])
    header = ["gradient", "training loss", *levels, "seconds per epoch", "epochs with a warning", "seeds"]
    return markdown(header, lines)


def _draw_recall(rows: list[Row], path: Path) -> None:
    """Draws one digit, corrupted and as recalled with each estimator, in a block per number of truncation steps."""
    first = {row["estimator"]: row for row in rows if row["seed"] == "0"}
    names = ["corrupted", "BPTT", "TBPTT", "RBP", "NeumannRBP", "CGRBP"]
    figure = Figure(figsize=(1.0 * len(STEPS) * len(LEVELS), 1.05 * len(names)), layout="constrained")
    parts: Any = figure.subfigures(1, len(STEPS), squeeze=False)
    for block, (steps, part) in enumerate(zip(STEPS, parts[0], strict=True)):
        part.suptitle(f"{steps} steps")
        panels = part.subplots(len(names), len(LEVELS))
        for line, name in zip(panels, names, strict=True):
            row = first["BPTT"] if name in ("corrupted", "BPTT") else first[f"{name}:{steps}"]
            images = _images(row["corrupted" if name == "corrupted" else "recalled"])
            for panel, image, level in zip(line, images, LEVELS, strict=True):
                panel.imshow(image, cmap="gray_r", vmin=0, vmax=1)
                panel.set_xticks([])
                panel.set_yticks([])
                if name == "corrupted":
                    panel.set_title(f"{100 * level:.0f}%", fontsize=8)
            if block == 0:
                line[0].set_ylabel(name, fontsize=8)
    figure.savefig(path, dpi=80)


def section(rows: list[Row], folder: Path) -> str:
    """Draws the pictures and returns the section of the report.

    Args:
        rows: The runs.
        folder: The folder of the pictures.
    """
    bands(curves_at(STEPS, rows), folder / "memory_curves.png", "training, in percent", "training loss", "log")
    _draw_recall(rows, folder / "memory_recall.png")
    estimators = estimators_in(rows)
    return f"""Ten clean binarised images are stored. They are recalled from images in which a share of the on pixels is
erased, twenty times each. The table shows the percentage of wrong pixels, mean and standard deviation over the seeds.
An estimator warns at most once per epoch.

{_table(rows, estimators)}

![Training curves against truncation steps](memory_curves.png)

*Mean over the seeds, with bands from the smallest to the largest value.*

![Recall against truncation steps and corruption](memory_recall.png)

*One digit at several levels of corruption, and its recall by the networks of seed 0. BPTT has no truncation steps.*"""


def findings(rows: list[Row]) -> list[Finding]:
    """Compares these runs with the paper's findings."""
    last = STEPS[-1]
    losses = {name: values_of(rows, name, "loss") for name in estimators_in(rows)}
    found = [
        less(
            UNSTABLE,
            f"training loss of the associative memory, {steps} steps",
            {f"NeumannRBP:{steps}": losses[f"NeumannRBP:{steps}"], f"RBP:{steps}": losses[f"RBP:{steps}"]},
        )
        for steps in STEPS
    ]
    neumann, kind = f"NeumannRBP:{last}", "Training loss of the associative memory"
    where = f"training loss of the associative memory, {last} steps"
    return [*found, best_of_all(EFFECTIVE, where, kind, neumann, losses[neumann], rivals_at(last, losses), digits=4)]
