"""How a graph network's time and memory grow with the graph."""

import statistics
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveFloat, PositiveInt
from matplotlib.figure import Figure

from benchmarks.graph_scale.worker import measured
from benchmarks.report import markdown, median_and_quartiles, write_csv
from rbp_lightning.errors import UserError

MIB = 2**20


def in_a_process(asked: dict[str, Any]) -> dict[str, Any]:
    """Measures in a fresh process, which has only imported what it needs.

    Args:
        asked: The arguments of ``measured``.

    Raises:
        UserError: If the process was killed, for example because memory ran out.
    """
    context = get_context("forkserver")
    context.set_forkserver_preload([measured.__module__])
    with ProcessPoolExecutor(1, context) as process:
        try:
            return process.submit(measured, **asked).result()
        except BrokenProcessPool as error:
            raise UserError(
                f"{asked}: its process was killed, perhaps because memory ran out: try fewer nodes."
            ) from error


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the measurements as Markdown."""
    header = ["nodes", "edges", "parts", "step, s", "epoch, s", "evaluation, s", "process, MiB", "step, MiB"]
    lines = []
    for row in rows:
        seconds = row["step_seconds"]
        epoch = row["parts"] * statistics.mean(seconds)
        memory = (f"{row[name] / MIB:,.0f}" for name in ("evaluated", "step", "evaluation"))
        sizes = (f"{row[name]:,}" for name in ("nodes", "edges", "parts"))
        times = (median_and_quartiles(seconds, 3), f"{epoch:.2f}", f"{row['evaluation_seconds']:.2f}")
        lines.append([*sizes, *times, *memory, f"{100 * row['accuracy']:.1f} % after {row['updates']}"])
    return markdown([*header, "evaluation, MiB", "accuracy after updates"], lines)


def plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """Plots steps per second and memory against the number of nodes to a PNG file."""
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    speed, memory = figure.subplots(1, 2)
    for place, parts in enumerate(dict.fromkeys(row["parts"] for row in rows)):
        own = [row for row in rows if row["parts"] == parts]
        nodes, name = [row["nodes"] for row in own], "whole graph" if parts == 1 else f"{parts} parts"
        medians = [1 / statistics.median(row["step_seconds"]) for row in own]
        speed.loglog(nodes, medians, "o-", color=f"C{place}", label=name)
        for column, style, what in (("evaluated", "o-", "process"), ("step", "s--", "a training step")):
            heights = [row[column] / MIB for row in own]
            memory.loglog(nodes, heights, style, color=f"C{place}", markersize=4, label=f"{name}, {what}")
    speed.set_ylabel("training steps a second of the processor", fontsize=9)
    memory.set_ylabel("peak MiB", fontsize=9)
    for panel in (speed, memory):
        panel.set_xlabel("nodes", fontsize=9)
        panel.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def graphs(
    nodes: list[PositiveInt] = [10_000, 100_000, 1_000_000],
    average_degree: PositiveFloat = 10.0,
    parts: list[PositiveInt] = [1, 16],
    epochs: PositiveInt = 2,
    width: PositiveInt = 16,
    out: Path = Path("logs/graphs"),
) -> None:
    """How a graph network's time and memory grow with the graph.

    Generates power-law graphs, trains a contractive graph network on each, as a whole and in parts with historical
    states, and classifies all nodes. Each training has a process of its own, with one thread. Times are CPU times.
    Prints a table of medians with quartiles over the steps, and writes a CSV file and a picture.

    Args:
        nodes: Numbers of nodes.
        average_degree: Columns of ``edge_index`` for each node.
        parts: Numbers of parts; 1 is the whole graph.
        epochs: Number of timed epochs, at least 2.
        width: Hidden units.
        out: Folder to write to.

    Raises:
        UserError: If an argument is invalid, or a process fails.
    """
    if epochs < 2:
        raise UserError(f"--epochs={epochs} gives no spread: it must be at least 2.")
    rows: list[dict[str, Any]] = []
    for size in nodes:
        for count in parts:
            asked = {"nodes": size, "average_degree": average_degree, "parts": count, "epochs": epochs, "width": width}
            rows.append(asked | in_a_process(asked))
            flat = [row | {"step_seconds": " ".join(f"{one:.6g}" for one in row["step_seconds"])} for row in rows]
            write_csv(out / "graphs.csv", flat)  # keeps what is done
    print(table(rows))
    plot(rows, out / "graphs.png")
