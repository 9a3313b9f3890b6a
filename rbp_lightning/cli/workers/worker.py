"""A worker process: executes one job, with its output in a file."""

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol

import torch

from rbp_lightning.cli.errors import one_line_errors
from rbp_lightning.cli.interruption import signals_end_the_run


class Job(Protocol):
    """What a worker process executes; it is pickled, and so is its result."""

    @property
    def name(self) -> str:
        """Its name in messages."""

    @property
    def log(self) -> Path:
        """The file that its output goes to."""

    def work(self, report: Callable[[Any], bool]) -> Any:
        """Does the work.

        Args:
            report: Tells the source of the job how far it is; returns whether it is to continue.

        Returns:
            The result.
        """


@dataclass(frozen=True)
class Slot:
    """The share of the machine that one job at a time gets.

    Attributes:
        threads: The number of threads.
        environment: Environment variables that select the device; in a worker, its whole environment.
    """

    threads: int
    environment: Mapping[str, str] = field(default_factory=dict)


def work(job: Job, slot: Slot, channel: Connection) -> None:
    """Executes a job, and sends its reports and its result, each with whether it is the result.

    Args:
        job: The job.
        slot: Its threads and environment.
        channel: The connection to the pool.
    """
    _redirect_output(job.log)
    os.environ.clear()
    os.environ.update(slot.environment)
    torch.set_num_threads(slot.threads)
    del sys.argv[1:]  # those of the pool's process
    threading.Thread(target=_end_with_parent, daemon=True).start()

    def report(progress: Any) -> bool:
        with contextlib.suppress(EOFError, OSError):  # the pool has ended and will end this process
            channel.send((False, progress))
            return bool(channel.recv())
        return True

    with one_line_errors(), signals_end_the_run():
        result = job.work(report)
        with contextlib.suppress(OSError):
            channel.send((True, result))


def last_line(log: Path) -> str:
    """Returns the last line of a job's output, which says why it failed.

    Args:
        log: The file of the output.
    """
    printed = log.read_text(errors="replace").strip() if log.is_file() else ""
    return (printed.rpartition("\n")[2] or "it printed nothing").removeprefix("error: ")


def _redirect_output(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:  # keeps the output from before an interruption
        for number in (1, 2):
            os.dup2(file.fileno(), number)


def _end_with_parent() -> None:
    """Ends the job, a training with a checkpoint, if the pool's process is killed."""
    parent = multiprocessing.parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os.kill(os.getpid(), signal.SIGTERM)
