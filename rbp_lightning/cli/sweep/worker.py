"""The worker process of a sweep: trains, tests and reports one run."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from rbp_lightning.cli.averaged_weights import stop_averaging
from rbp_lightning.cli.errors import one_line_errors
from rbp_lightning.cli.interruption import signals_end_the_run
from rbp_lightning.cli.main import main
from rbp_lightning.cli.sweep.outcome import Outcome, write_outcome
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.errors import UserError


@dataclass(frozen=True)
class Slot:
    """The share of the machine that one run at a time gets.

    Attributes:
        threads: The number of threads.
        environment: Environment variables that select the device; in a worker, its whole environment.
    """

    threads: int
    environment: Mapping[str, str] = field(default_factory=dict)


class Reporter(Callback):
    """Reports each epoch to the sweep, and stops the run if the sweep says so.

    Args:
        channel: The connection to the sweep.
        metric: The metric that is compared.
    """

    stopped = False

    def __init__(self, channel: Connection, metric: str) -> None:
        self._channel, self._metric = channel, metric

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the epoch and the metric, if it was logged, and waits for the answer."""
        value = trainer.callback_metrics.get(self._metric)
        with contextlib.suppress(EOFError, OSError):  # the sweep has ended and will end this process
            self._channel.send((trainer.current_epoch + 1, None if value is None else float(value)))
            if not self._channel.recv():
                self.stopped = trainer.should_stop = True


def work(run: Planned, metric: str, test: str | None, slot: Slot, channel: Connection) -> None:
    """Trains and tests a run, and writes its outcome unless it fails.

    Args:
        run: The run.
        metric: The metric that is compared.
        test: ``last`` or ``best``; ``None`` for no test.
        slot: Its threads and environment.
        channel: The connection to the sweep.
    """
    arguments = run.arguments()
    _redirect_output(run.log)
    os.environ.clear()
    os.environ.update(slot.environment)
    torch.set_num_threads(slot.threads)
    sys.argv[1:] = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with one_line_errors(), signals_end_the_run():
        write_outcome(run, _train(arguments, metric, test, Reporter(channel, metric)))


def _train(arguments: list[str], metric: str, test: str | None, reporter: Reporter) -> Outcome:
    start = time.perf_counter()
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


def _redirect_output(path: Path) -> None:
    with path.open("ab") as file:  # keeps the output from before an interruption
        for number in (1, 2):
            os.dup2(file.fileno(), number)


def _end_with_parent() -> None:
    """Ends the run, with a checkpoint, if the sweep's process is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
