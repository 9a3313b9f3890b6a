"""A picture of how answers depend on the puzzles' size and on the number of steps."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from rbp_lightning.diagnostics.log_figure import log_figure, picture_folder

Curves = Mapping[int, ArrayLike]
"""By size, values of shape ``[runs, steps]``."""


def curves(
    steps: Sequence[float],
    solved: Curves,
    residuals: Curves,
    variants: Mapping[str, ArrayLike] | None = None,
) -> Figure:
    """Draws the share solved exactly against the size, and share and mean residual against the steps.

    Of several runs, the first panel has the mean and each run, and the others have the median and the range.

    Args:
        steps: The numbers of steps.
        solved: Shares solved exactly, from 0 to 1.
        residuals: Mean residuals, of the same sizes.
        variants: Shares after the last step on variants of the puzzles, of shape ``[runs, sizes]``.

    Example:
        >>> from models.equilibrium_reasoner.curves import curves
        >>> figure = curves([8, 80], {16: [[0.9, 1.0]], 64: [[0.0, 0.7]]}, {16: [[0.1, 1e-3]], 64: [[0.1, 2e-3]]})
        >>> figure.axes[0].lines[0].get_ydata().tolist()
        [100.0, 70.0]
    """
    figure = Figure(figsize=(11, 3.2), layout="constrained")
    by_size, by_steps, residual_by_steps = figure.subplots(1, 3)
    sizes = list(solved)
    own = {"as in training" if variants else "": np.array([np.array(solved[size])[:, -1] for size in sizes]).T}
    for place, (name, shares) in enumerate({**own, **(variants or {})}.items()):
        percent = 100 * np.array(shares)
        by_size.plot(sizes, percent.mean(0), "o-", color=f"C{place}", label=name)
        by_size.plot(sizes, percent.T, ".", color=f"C{place}", alpha=0.4)
    by_size.set_xlabel("size")
    by_size.set_xticks(sizes)
    for panel, found, factor in ((by_steps, solved, 100), (residual_by_steps, residuals, 1)):
        for size in sizes:
            runs = factor * np.array(found[size])
            (line,) = panel.plot(steps, np.median(runs, 0), "o-", label=f"size {size}")
            panel.fill_between(steps, runs.min(0), runs.max(0), color=line.get_color(), alpha=0.2, linewidth=0)
        panel.set_xscale("log")
        panel.set_xticks(steps, [f"{count:.0f}" for count in steps])
        panel.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        panel.tick_params(axis="x", labelrotation=60, labelsize=8)  # steps may be close to each other
        panel.set_xlabel("steps")
    for panel in (by_size, by_steps):
        panel.set_ylabel("solved exactly in %")
        panel.set_ylim(-5, 105)
    residual_by_steps.set_ylabel("mean residual")
    residual_by_steps.set_yscale("log")
    for panel in [by_size, residual_by_steps] if variants else [residual_by_steps]:
        panel.legend(fontsize=7)
    return figure


class CurvePictures(Callback):
    """Logs the results of a test by size and by number of steps, as ``test/curves`` and as ``curves.png``."""

    def __init__(self) -> None:
        self._folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the log folder, for which all processes have to ask."""
        self._folder = picture_folder(trainer)

    def on_test_end(self, trainer: Trainer, pl_module: Any) -> None:
        """Draws the picture, if there is a logger."""
        if self._folder is None or not trainer.is_global_zero:
            return
        found = trainer.callback_metrics  # means over processes
        sizes = sorted(int(one[1]) for name in found if (one := re.fullmatch(r"test/exact_(\d+)", name)))
        solved, residuals = (
            {size: [[float(found[f"test/{what}_{size}{ending}"]) for ending in pl_module.endings]] for size in sizes}
            for what in ("exact", "residual")
        )
        figure = curves(pl_module.budgets, solved, residuals)
        log_figure(trainer, "test/curves", figure, trainer.global_step, self._folder)
