"""What watching a training costs."""

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
"""Steps between two looks, and between two sets of plots, of the run that is timed."""


class Clock(Callback):
    """Times each step, from its beginning to that of the next one."""

    def __init__(self) -> None:
        self.starts: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Reads the time."""
        self.starts.append(time.perf_counter())


def times(config: str, steps: int) -> tuple[float, float, float]:
    """Median seconds of a step that is not looked at, of one that is, and of one that is plotted."""
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
        if step >= PLOT:  # the first ones warm up
            groups["plot" if step % PLOT == 0 else "look" if step % LOOK == 0 else "plain"].append(duration)
    plain, look, plot = (statistics.median(group) for group in groups.values())
    return plain, look, plot


def monitor(
    configs: list[str] = ["configs/hopfield.yaml", "configs/cora.yaml"],
    steps: PositiveInt = 200,
    out: Path = Path("logs/monitor"),
) -> None:
    """What watching costs.

    Trains with an ``EquilibriumMonitor`` that looks every few steps and plots more rarely, and times the steps in
    between, all in one run. From the medians it prints how much of the time the monitor takes at its default intervals,
    and leaves a CSV file.

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
    """Lays the time of a step that is watched, over one that is not, out as Markdown, with what that comes to.

    Args:
        rows: Of each config, as in the CSV file.
    """
    every, plot_every = rows[0]["every_n_steps"], rows[0]["plot_every_n_steps"]
    lines = []
    for row in rows:
        look, plots = row["look"], row["plots"]
        shares = (look - 1) / every, (plots - look) / plot_every
        lines.append([row["config"], f"{look:.1f}", f"{plots:.1f}", *(f"{100 * share:.1f} %" for share in shares)])
    columns = ["config", "step with a look", "step with plots", f"looks, every {every} steps"]
    return markdown([*columns, f"plots, every {plot_every}"], lines)
