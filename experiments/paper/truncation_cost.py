"""Time and memory of the hyperparameters' gradient against the truncation steps."""

import statistics
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from benchmarks.report import markdown
from experiments.paper import hyperparameters
from experiments.paper.findings import MEMORY, TAPE, TIME, Finding
from experiments.paper.runs import Scale, truncated, values_of
from experiments.runs import Row, estimators_in, label, mean_and_spread

NAME = "Cost of the truncation steps"
WHERE = "hyperparameters of a training"
SLOPES = 2.0
"""Ratio up to which the times of a step count as alike."""

GROWTH = 0.1
"""Relative difference up to which two amounts of memory count as alike."""

STEPS = [10, 50, 100]
# The adjoint equation is set up on a minibatch, so that a product costs as much as a step of the training.
MINIBATCH = "--model.linearization_batches=1"
FULL = Scale(["configs/paper/hypergrad.yaml"], truncated(STEPS), MINIBATCH, seeds=3)
QUICK = Scale(
    ["configs/hypergrad.yaml"],
    truncated(STEPS),
    f"--model.hyperparameters=null {MINIBATCH} --trainer.max_epochs=4",
    seeds=2,
)
MEASURED = hyperparameters.MEASURED
run = hyperparameters.run


def _table(rows: list[Row]) -> str:
    lines = []
    for name in estimators_in(rows):
        losses = values_of(rows, name, "loss")
        seconds = statistics.median(values_of(rows, name, "seconds"))
        memory = mean_and_spread([value / 2**20 for value in values_of(rows, name, "peak_bytes")], 1)
        lines.append([label(name), f"{seconds:.3f}", f"{memory} MiB", mean_and_spread(losses, 4), len(losses)])
    return markdown(["gradient", "seconds per outer step", "peak memory", "outer loss", "seeds"], lines)


def _draw(rows: list[Row], path: Path) -> None:
    figure = Figure(figsize=(8, 3.2), layout="constrained")
    time_panel, memory_panel = figure.subplots(1, 2)
    for name in dict.fromkeys(one.partition(":")[0] for one in estimators_in(rows) if ":" in one):
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
    """Draws the picture and returns the section of the report.

    Args:
        rows: The runs.
        folder: The folder of the picture.
    """
    _draw(rows, folder / "truncation_cost.png")
    return f"""The same training of hyperparameters, but with a minibatch in the last inner step, so that a product
costs as much as a step of the training. Median seconds; mean and standard deviation of the rest over the seeds:

{_table(rows)}

![Time and memory against truncation steps](truncation_cost.png)"""


def _slope(rows: list[Row], name: str, measured: str) -> float:
    """The cost of a truncation step, by least squares."""
    points = np.array([(steps, value) for steps in STEPS for value in values_of(rows, f"{name}:{steps}", measured)])
    return float(np.polyfit(points[:, 0], points[:, 1], 1)[0])


def _time(rows: list[Row]) -> Finding:
    seconds = {name: _slope(rows, name, "seconds") for name in ("NeumannRBP", "TBPTT")}
    ratio = seconds["NeumannRBP"] / seconds["TBPTT"]
    figure = f"a step adds {1000 * seconds['NeumannRBP']:.2f} ms to NeumannRBP and {1000 * seconds['TBPTT']:.2f} ms to "
    figure += f"TBPTT, ratio {ratio:.2f}"
    known = min(seconds.values()) > 0
    verdict = ("agrees" if 1 / SLOPES <= ratio <= SLOPES else "disagrees") if known else "inconclusive"
    return Finding(TIME, WHERE, verdict, figure)


def _memory(rows: list[Row], name: str, claim: str, grows: bool) -> Finding:
    few, middle, many = STEPS
    low, between, high = (float(np.mean(values_of(rows, f"{name}:{steps}", "peak_bytes"))) / 2**20 for steps in STEPS)
    figure = f"the peak is {low:.1f} MiB for {few} steps and {high:.1f} MiB for {many}"
    if grows:
        straight = low + (high - low) * (middle - few) / (many - few)
        figure += f"; {between:.1f} MiB for {middle}, where a straight line has {straight:.1f} MiB"
        agrees = high > 1.5 * low and abs(between / straight - 1) < GROWTH
    else:
        agrees = high < (1 + GROWTH) * low
    return Finding(claim, WHERE, "agrees" if agrees else "disagrees", figure)


def findings(rows: list[Row]) -> list[Finding]:
    """Compares these runs with the paper's findings."""
    constant = _memory(rows, "NeumannRBP", MEMORY, grows=False)
    return [_time(rows), constant, _memory(rows, "TBPTT", TAPE, grows=True)]
