"""A training of a sweep, in a process of its own."""

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

from rbp_lightning.cli.errors import one_line_errors
from rbp_lightning.cli.interruption import signals_end_the_run
from rbp_lightning.cli.main import main
from rbp_lightning.cli.sweep.outcome import Outcome, keep
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.errors import UserError


@dataclass(frozen=True)
class Slot:
    """What one training at a time has of the machine.

    Attributes:
        threads: How many threads.
        environment: Variables that say which device; for a training, all of its variables.
    """

    threads: int
    environment: Mapping[str, str] = field(default_factory=dict)


class Reporter(Callback):
    """Tells the sweep of each epoch, and ends the training where the sweep says so.

    Args:
        channel: Where to.
        metric: What is compared.
    """

    stopped = False

    def __init__(self, channel: Connection, metric: str) -> None:
        self._channel, self._metric = channel, metric

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Reports the epoch and the metric, if there is one by now, and waits for the answer."""
        value = trainer.callback_metrics.get(self._metric)
        with contextlib.suppress(EOFError, OSError):  # the sweep has ended, and is going to end this
            self._channel.send((trainer.current_epoch + 1, None if value is None else float(value)))
            if not self._channel.recv():
                self.stopped = trainer.should_stop = True


def work(run: Planned, metric: str, test: str | None, slot: Slot, channel: Connection) -> None:
    """Trains, tests and leaves the outcome in the training's folder; a failure leaves none.

    Args:
        run: The training.
        metric: What is compared.
        test: ``last``, ``best`` or, for no test, ``None``.
        slot: What it has of the machine.
        channel: Where it reports to.
    """
    arguments = run.arguments()
    _print_into(run.log)
    os.environ.clear()
    os.environ.update(slot.environment)
    torch.set_num_threads(slot.threads)
    sys.argv[1:] = arguments
    threading.Thread(target=_end_with_parent, daemon=True).start()
    with one_line_errors(), signals_end_the_run():
        keep(run, _train(arguments, metric, test, Reporter(channel, metric)))


def _train(arguments: list[str], metric: str, test: str | None, reporter: Reporter) -> Outcome:
    begin = time.perf_counter()
    cli = main(trainer_defaults={"callbacks": [reporter]})
    whole = not any(word.startswith("--ckpt_path") for word in arguments)
    seconds = time.perf_counter() - begin
    metrics = {name: float(value) for name, value in cli.trainer.callback_metrics.items()}
    if test is not None:
        # The first ModelCheckpoint is that of the best.
        best: Any = cli.trainer.checkpoint_callback.best_model_path if test == "best" else None  # type: ignore[union-attr]
        metrics |= cli.trainer.test(cli.model, cli.datamodule, ckpt_path=best, verbose=False)[0]
    if metric not in metrics:
        raise UserError(f"{metric} was not logged: compare one of {', '.join(sorted(metrics)) or 'what you log'}.")
    return Outcome("pruned" if reporter.stopped else "finished", metrics, round(seconds, 2) if whole else None)


def _print_into(path: Path) -> None:
    with path.open("ab") as file:  # after what it printed before it was interrupted
        for number in (1, 2):
            os.dup2(file.fileno(), number)


def _end_with_parent() -> None:
    """Ends the training, in order, where the sweep's process has been killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
