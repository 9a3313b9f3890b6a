"""The training and the test of a run of a sweep, in its process."""

import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

from lightning.pytorch import Callback, LightningModule, Trainer

from rbp_lightning.cli.averaged_weights import stop_averaging
from rbp_lightning.cli.main import main
from rbp_lightning.cli.sweep.outcome import Outcome
from rbp_lightning.errors import UserError


class Epoch(NamedTuple):
    """The progress of a run.

    Attributes:
        number: The number of epochs completed.
        value: The metric's value; ``None`` if it has not been logged yet.
    """

    number: int
    value: float | None


class Reporter(Callback):
    """Reports each epoch to the sweep, and stops the run if the sweep says so.

    Args:
        report: Reports to the sweep; returns whether the run is to continue.
        metric: The metric that is compared.
    """

    stopped = False

    def __init__(self, report: Callable[[Epoch], bool], metric: str) -> None:
        self._report, self._metric = report, metric

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the epoch and the metric, if it was logged, and waits for the answer."""
        value = trainer.callback_metrics.get(self._metric)
        if not self._report(Epoch(trainer.current_epoch + 1, None if value is None else float(value))):
            self.stopped = trainer.should_stop = True


def train_and_test(arguments: list[str], metric: str, test: str | None, report: Callable[[Epoch], bool]) -> Outcome:
    """Trains and tests a run.

    Args:
        arguments: The arguments of the command line, which become those of this process.
        metric: The metric that is compared.
        test: ``last`` or ``best``; ``None`` for no test.
        report: Reports to the sweep; returns whether the run is to continue.

    Raises:
        UserError: If the metric was not logged.
    """
    sys.argv[1:] = arguments
    start, reporter = time.perf_counter(), Reporter(report, metric)
    cli = main(trainer_defaults={"callbacks": [reporter]})
    resumed = any(word.startswith("--ckpt_path") for word in arguments)
    seconds = time.perf_counter() - start
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    if test is not None:
        # The first ModelCheckpoint keeps the best checkpoint.
        best: Any = cli.trainer.checkpoint_callback.best_model_path if test == "best" else None  # type: ignore[union-attr]
        stop_averaging(cli.trainer)
        metrics |= cli.trainer.test(cli.model, cli.datamodule, ckpt_path=best, verbose=False)[0]
    if metric not in metrics:
        raise UserError(f"{metric} was not logged: compare one of {', '.join(sorted(metrics)) or 'what you log'}.")
    return Outcome("pruned" if reporter.stopped else "finished", metrics, None if resumed else round(seconds, 2))
