"""Plots of curves over several seeds."""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from experiments.paper.runs import curve_of
from experiments.runs import ESTIMATORS, Row


def curves_at(steps: list[int], rows: list[Row]) -> dict[str, dict[str, list[str]]]:
    """The curves of runs, with a panel for each number of truncation steps; ``BPTT``, which has none, is in each.

    Args:
        steps: The numbers of truncation steps.
        rows: The runs, with a cell ``"curve"``.
    """
    return {
        f"{count} steps": {
            name: [row["curve"] for row in rows if row["estimator"] in (name, f"{name}:{count}")] for name in ESTIMATORS
        }
        for count in steps
    }


def bands(
    panels: dict[str, dict[str, list[str]]], path: Path, horizontal: str, vertical: str, scale: str, steps: bool = False
) -> None:
    """Plots means of curves, with bands from the smallest to the largest, in panels side by side, to a PNG file.

    Args:
        panels: For each panel, by title, the curves of each line, by name, as cells of the CSV file.
        path: The PNG file.
        horizontal: Label of the horizontal axis.
        vertical: Label of the vertical axis.
        scale: Scale of the vertical axis, as in matplotlib.
        steps: Whether the horizontal axis counts points instead of percent of the run.
    """
    figure = Figure(figsize=(4 * len(panels), 3.2), layout="constrained")
    for panel, (title, lines) in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels.items(), strict=True):
        for name, texts in lines.items():
            curves = [curve_of(text) for text in texts]
            if not curves:
                continue
            length = min(map(len, curves))
            values = np.array([curve[:length] for curve in curves])
            where = np.arange(1, length + 1) if steps else np.linspace(0, 100, length)
            (line,) = panel.plot(where, values.mean(0), label=name)
            panel.fill_between(where, values.min(0), values.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set_yscale(scale)
        panel.set_title(title)
        panel.set_xlabel(horizontal)
        panel.set_ylabel(vertical)
        panel.legend(fontsize=7)
    figure.savefig(path, dpi=100)
