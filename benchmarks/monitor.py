"""The cost of monitoring a training."""

import inspect
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jsonargparse.typing import PositiveInt
from lightning.pytorch import Callback, LightningModule, Trainer

from benchmarks.report import markdown, write_csv
from rbp_lightning import ConvergenceWarning, EquilibriumMonitor
from rbp_lightning.cli import RBPLightningCLI

LOOK, PLOT = 4, 20
"""Steps between two observations, and between two sets of plots, in the timed run."""


class Clock(Callback):
    """Records when each step starts."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Reads the time."""
        self.starts.append(time.perf_counter())


def times(config: str, steps: int) -> tuple[float, float, float]:
    """Median seconds of a step that is not observed, of one that is, and of one that is plotted as well."""
    clock = Clock()
    arguments = ["fit", f"--config={config}", "--trainer.callbacks=null", "--trainer.logger.save_dir=logs/benchmarks"]
    arguments += ["--trainer.max_epochs=-1", f"--trainer.max_steps={steps + 1}", "--trainer.limit_val_batches=0"]
    arguments += ["--trainer.enable_progress_bar=false", "--trainer.enable_checkpointing=false"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        RBPLightningCLI(args=arguments, trainer_defaults={"callbacks": [clock, EquilibriumMonitor(LOOK, PLOT)]})
    durations = [after - before for before, after in zip(clock.starts, clock.starts[1:], strict=False)]
    groups: dict[str, list[float]] = {"plain": [], "look": [], "plot": []}
    for step, duration in enumerate(durations):
        if step >= PLOT:  # the first steps are a warm-up
            groups["plot" if step % PLOT == 0 else "look" if step % LOOK == 0 else "plain"].append(duration)
    plain, look, plot = (statistics.median(group) for group in groups.values())
    return plain, look, plot


def monitor(
    configs: list[str] = ["configs/hopfield.yaml", "configs/cora.yaml"],
    steps: PositiveInt = 200,
    out: Path = Path("logs/monitor"),
) -> None:
    """The cost of monitoring a training.

    Trains with an ``EquilibriumMonitor`` that observes every few steps and plots less often, and times all steps of
    this run. From the medians, prints the share of time that the monitor takes at its default intervals, and writes a
    CSV file.

    Args:
        configs: Configs to train.
        steps: Steps to train, at least 60.
        out: Folder to write to.
    """
    defaults = {name: one.default for name, one in inspect.signature(EquilibriumMonitor).parameters.items()}
    intervals = {name: defaults[name] for name in ("every_n_steps", "plot_every_n_steps")}
    rows = []
    for config in configs:
        plain, look, plot = times(config, max(steps, 3 * PLOT))
        rows.append({"config": config, "look": look / plain, "plots": plot / plain, **intervals})
    write_csv(out / "monitor.csv", rows)
    print(table(rows))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the time of an observed step relative to a plain one, and the resulting share, as Markdown.

    Args:
        rows: Rows of the CSV file.
    """
    every, plot_every = rows[0]["every_n_steps"], rows[0]["plot_every_n_steps"]
    lines = []
    for row in rows:
        look, plots = row["look"], row["plots"]
        shares = (look - 1) / every, (plots - look) / plot_every
        lines.append([row["config"], f"{look:.1f}", f"{plots:.1f}", *(f"{100 * share:.1f} %" for share in shares)])
    columns = ["config", "observed step", "step with plots", f"observing, every {every} steps"]
    return markdown([*columns, f"plotting, every {plot_every} steps"], lines)
