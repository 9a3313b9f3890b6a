"""How time and memory of a solve and its gradient grow."""

import statistics
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path

import torch
from jsonargparse.typing import OpenUnitInterval, PositiveInt
from matplotlib.figure import Figure

from benchmarks.growth.measure import Cost, costs
from benchmarks.growth.network import UNITS, network
from benchmarks.growth.pairs import PAIRS, WINDOWED
from benchmarks.report import markdown, median_and_quartiles, write_csv
from benchmarks.timing import check_repeats
from rbp_lightning import ConvergenceWarning
from rbp_lightning.errors import UserError

SIZE, RADIUS = 10_000, 0.9
"""Size of a state and spectral radius while something else grows."""

AXES = {
    "size": "elements of a state",
    "batch": "samples of 1,000 elements",
    "radius": "1 / (1 - spectral radius)",
    "window": "window or cycle, radius 0.99",
}
"""What grows, and its label in the picture."""

QUANTITIES = {"applications": "time, in applications of F", "states": "peak memory, in states"}


def measured(
    sizes: Sequence[int],
    batches: Sequence[int],
    radii: Sequence[float],
    windows: Sequence[int],
    tol: float,
    repeats: int,
) -> list[Cost]:
    """Measures all pairs while one thing after another grows; the arguments are those of ``growth``."""
    pairs = {name: partial(make, tol) for name, make in PAIRS.items()}
    found: list[Cost] = []
    for size in sizes:
        found += costs("size", size, network(size, 1, RADIUS), pairs, repeats)
    for batch in batches:
        found += costs("batch", batch, network(1000, batch, RADIUS), pairs, repeats)
    for radius in radii:
        found += costs("radius", radius, network(SIZE, 1, radius), pairs, repeats)
    for window in windows if WINDOWED else ():
        windowed = {name: partial(make, tol, window) for name, make in WINDOWED.items()}
        found += costs("window", window, network(SIZE, 1, 0.99), windowed, repeats)
    return found


def series(found: Sequence[Cost], axis: str, quantity: str) -> dict[str, dict[float, list[float]]]:
    """Groups the values of a quantity by pair and by the value on an axis."""
    grouped: dict[str, dict[float, list[float]]] = {}
    for one in found:
        if one.axis == axis:
            grouped.setdefault(one.pair, {}).setdefault(one.value, []).append(getattr(one, quantity))
    return grouped


def tables(found: Sequence[Cost]) -> str:
    """Formats both quantities as Markdown, with a table for each axis."""
    texts = []
    for axis in dict.fromkeys(one.axis for one in found):
        rows = []
        for quantity, title in QUANTITIES.items():
            grouped = series(found, axis, quantity)
            values = list(next(iter(grouped.values())))
            for pair, row in grouped.items():
                cells = (median_and_quartiles(row[one], 0 if quantity == "applications" else 1) for one in values)
                rows.append([f"{pair}: {title}", *cells])
        texts.append(markdown([axis, *(f"{one:,}" for one in values)], rows))
    return "\n\n".join(texts)


def plot(found: Sequence[Cost], path: Path) -> None:
    """Plots both quantities against each axis to a PNG file."""
    axes = list(dict.fromkeys(one.axis for one in found))
    figure = Figure(figsize=(3.4 * len(axes) + 1, 6), layout="constrained")
    grid = figure.subplots(2, len(axes), sharex="col", squeeze=False)
    for (quantity, title), panels in zip(QUANTITIES.items(), grid, strict=True):
        for panel, axis in zip(panels, axes, strict=True):
            for pair, row in series(found, axis, quantity).items():
                where = [1 / (1 - one) if axis == "radius" else one for one in row]
                panel.plot(where, [statistics.median(one) for one in row.values()], "o-", markersize=3, label=pair)
            panel.set_xscale("log", base=2 if axis == "window" else 10)
            if quantity == "applications":
                panel.set_yscale("log")
            else:
                panel.set_ylim(bottom=0)
        panels[0].set_ylabel(title, fontsize=9)
    for panel, axis in zip(grid[-1], axes, strict=True):
        panel.set_xlabel(AXES[axis], fontsize=9)
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=120)


def growth(
    sizes: list[PositiveInt] = [1000, 10_000, 100_000, 1_000_000, 10_000_000],
    batches: list[PositiveInt] = [1, 4, 16, 64, 256, 1024],
    radii: list[OpenUnitInterval] = [0.5, 0.9, 0.99, 0.999],
    windows: list[PositiveInt] = [2, 4, 8, 16, 32],
    tol: OpenUnitInterval = 1e-5,
    repeats: PositiveInt = 3,
    out: Path = Path("logs/growth"),
) -> None:
    """How time and memory of a solve and its gradient grow.

    Solves a network with pairs of a solver and an estimator, all to the same tolerance, while one quantity after the
    other grows: the size of a state, the number of samples, the spectral radius, and the number of iterates that an
    accelerated solver keeps. Time is given in applications of F, timed next to it, and peak memory in states. Prints
    tables of medians with quartiles, and writes a CSV file with every measurement and a picture.

    Args:
        sizes: Elements of the state of a single sample, multiples of 50.
        batches: Numbers of samples, each with 1,000 elements.
        radii: Spectral radii, on a state of 10,000 elements.
        windows: Numbers of iterates kept, on a state of 10,000 elements with radius 0.99.
        tol: Relative tolerance of the solve and of the adjoint.
        repeats: Number of repeats, at least 2.
        out: Folder to write to.

    Raises:
        UserError: If an argument is invalid.
    """
    check_repeats(repeats)
    if any(size % UNITS for size in sizes):
        raise UserError(f"--sizes={sizes}: each must be a multiple of {UNITS}.")
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        found = measured(sizes, batches, radii, windows, tol, repeats)
    print(tables(found))
    write_csv(out / "growth.csv", [asdict(one) for one in found])
    plot(found, out / "growth.png")
