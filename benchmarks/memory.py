"""Peak memory of a training step with each estimator."""

import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from jsonargparse.typing import PositiveInt
from matplotlib.figure import Figure

from benchmarks.devices import DeviceName, available
from benchmarks.peak_memory import peak_bytes
from benchmarks.peers.cases import make_case
from benchmarks.report import markdown, write_csv
from datamodules import CitationGraph
from models import CitationGNN, GRUPropagation
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, ConvergenceWarning, GradientEstimator, NeumannRBP, Picard
from rbp_lightning.errors import UserError

CORA = Path(__file__).parents[1] / "configs/paper/cora.yaml"
"""The config of the training step on Cora."""

RELEASED_CODE = 2.5e9
"""Bytes that the paper's released code takes for that step, all of which it keeps on the tape."""

ESTIMATORS: dict[str, Callable[[Picard], GradientEstimator]] = {
    "BPTT": lambda solver: BPTT(solver),
    "TBPTT(20)": lambda solver: TBPTT(min(20, solver.max_steps), solver),
    "RBP": lambda solver: RBP(solver=solver),
    "NeumannRBP(20)": lambda solver: NeumannRBP(20, solver),
    "CGRBP": lambda solver: CGRBP(solver=solver),
}

Peaks = dict[str, dict[int, int]]
"""Bytes by estimator and number of steps or terms."""


def solve_peak(estimator: GradientEstimator, device: torch.device) -> int:
    """Peak bytes of a solve of a fully connected cell, 64 samples of 256 units, and of its gradient.

    Args:
        estimator: The estimator.
        device: The device to run on.
    """
    case = make_case("tanh, radius 0.93")
    prepared = tuple(one.to(device) for one in case.prepare(*case.parameters))
    start = case.start.to(device)

    def run() -> None:
        state = estimator(case.update(prepared), start, batch_dims=case.batch_dims).state
        torch.autograd.grad(case.loss(state), prepared)

    return peak_bytes(run, device)


def training_peaks(config: Path, device: torch.device) -> dict[str, int]:
    """Peak bytes of a training step with each estimator: loss, gradient and the optimiser's step.

    Args:
        config: Path of the config that names model, data and solver.
        device: The device to run on.

    Raises:
        UserError: If a file of the data is missing.
    """
    settings = yaml.safe_load(config.read_text())
    cell = GRUPropagation(**settings["model"]["init_args"].pop("cell")["init_args"])
    model, data = CitationGNN(cell, **settings["model"]["init_args"]), CitationGraph(**settings["data"]["init_args"])
    data.prepare_data()
    data.setup("fit")
    model, graph = model.to(device), data.graph.to(device)
    optimizer = model.configure_optimizers()
    solver = Picard(**settings["estimator"]["init_args"]["solver"]["init_args"])

    def run() -> None:
        optimizer.zero_grad()
        model.training_step(graph, 0).backward()  # type: ignore[no-untyped-call]
        optimizer.step()

    model.estimator = NeumannRBP(0, Picard(2, 0.0))
    run()  # allocates what stays: the propagation matrix and the optimiser's averages
    peaks = {}
    for name, make in ESTIMATORS.items():
        model.estimator = make(solver)
        optimizer.zero_grad()
        peaks[name] = peak_bytes(run, device)
    return peaks


def mebibytes(count: float) -> str:
    """Formats a number of bytes in MiB."""
    return f"{count / 2**20:.2f}"


def table(title: str, peaks: Peaks) -> str:
    """Formats peaks in MiB as Markdown, with a row for each estimator."""
    columns = [f"{one:,}" for one in next(iter(peaks.values()))]
    return markdown([title, *columns], [[name, *map(mebibytes, row.values())] for name, row in peaks.items()])


def training_table(peaks: dict[str, int]) -> str:
    """Formats the peaks of a training step as Markdown."""
    rows = [
        [name, mebibytes(peak), f"{100 * peak / peaks['BPTT']:.1f} %", f"{100 * peak / RELEASED_CODE:.2f} %"]
        for name, peak in peaks.items()
    ]
    return markdown(["training step on Cora", "peak MiB", "share of BPTT's", "share of 2.5 GB"], rows)


def tables_of_file(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the rows of the CSV file as Markdown tables."""
    found: dict[str, Peaks] = {}
    for row in rows:
        found.setdefault(row["by"], {}).setdefault(row["estimator"], {})[row["number"]] = row["bytes"]
    training = {name: peak for name, row in found.pop("training step on Cora", {}).items() for peak in row.values()}
    texts = [table(f"peak MiB, by {title}", peaks) for title, peaks in found.items()]
    return "\n\n".join([*texts, *([training_table(training)] if training else [])])


def plot(by_steps: Peaks, by_terms: Peaks, path: Path) -> None:
    """Plots both dependences to a PNG file."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    kinds = [name.partition("(")[0] for name in by_steps]
    labels = "steps of the forward solve", "steps that are taped, or products with the Jacobian"
    for panel, label, peaks in zip(panels, labels, (by_steps, by_terms), strict=True):
        for name, row in peaks.items():
            color = f"C{kinds.index(name.partition('(')[0])}"
            heights = [peak / 2**20 for peak in row.values()]
            panel.loglog(list(row), heights, "o-", markersize=3, label=name, color=color)
        panel.set_xlabel(label, fontsize=9)
        panel.legend(fontsize=8)
    panels[0].set_ylabel("peak MiB of a solve and its gradient", fontsize=9)
    figure.savefig(path, dpi=120)


def memory(
    steps: list[PositiveInt] = [10, 30, 100, 300, 1000, 3000, 10000],
    terms: list[PositiveInt] = [10, 20, 50, 100, 200],
    device: DeviceName = "cpu",
    out: Path = Path("logs/memory"),
) -> None:
    """Peak memory of a training step with each estimator.

    Measures the peak of allocated bytes, temporaries included. For a solve and its backward pass it varies first the
    number of steps, then the number of terms of TBPTT and NeumannRBP. If the data of Cora are there, it also measures a
    training step in the paper's setting. Prints the tables, and writes a CSV file and a picture.

    Args:
        steps: Numbers of steps of the forward solve, each at least 2.
        terms: Numbers of terms of TBPTT and NeumannRBP.
        device: The device to run on.
        out: Folder to write to.

    Raises:
        UserError: If an argument is invalid.
    """
    for option, numbers, least in (("steps", steps, 2), ("terms", terms, 1)):
        if min(numbers) < least:
            raise UserError(f"--{option}={min(numbers)} must be at least {least}.")
    where = available(device)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", ".*`self.trainer` reference is not registered")
        solve_peak(NeumannRBP(), where)  # allocates the workspaces of products
        by_steps = {
            name: {count: solve_peak(make(Picard(count, 0.0)), where) for count in steps}
            for name, make in ESTIMATORS.items()
        }
        print(table("peak MiB, by steps of the solve", by_steps), flush=True)
        solver = Picard(max(2, *terms), 0.0)
        by_terms = {
            "TBPTT": {count: solve_peak(TBPTT(count, solver), where) for count in terms},
            "NeumannRBP": {count: solve_peak(NeumannRBP(count, solver), where) for count in terms},
        }
        print("\n" + table("peak MiB, by terms", by_terms), flush=True)
        training: dict[str, int] = {}
        try:
            training = training_peaks(CORA, where)
            print("\n" + training_table(training))
        except UserError as reason:  # its data are missing
            print(f"training step on Cora: left out. {reason}", file=sys.stderr)
    found = [("steps of the solve", name, one, peak) for name, row in by_steps.items() for one, peak in row.items()]
    found += [("terms", name, one, peak) for name, row in by_terms.items() for one, peak in row.items()]
    rows = [dict(zip(("by", "estimator", "number", "bytes"), values, strict=True)) for values in found]
    rows += [
        {"by": "training step on Cora", "estimator": name, "number": "", "bytes": peak}
        for name, peak in training.items()
    ]
    write_csv(out / "memory.csv", rows)
    plot(by_steps, by_terms, out / "memory.png")
