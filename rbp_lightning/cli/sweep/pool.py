"""Processes that have nothing to import, as many at once as there is room for."""

import contextlib
import multiprocessing
import os
import sys
from collections.abc import Iterable, Iterator
from multiprocessing import connection, forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, Protocol

import torch

from rbp_lightning.cli.sweep.outcome import Outcome, failure, kept
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.sweep.worker import Slot, work

PATIENCE = 60
"""Seconds in which a training that is told to end has to."""


class Source(Protocol):
    """Says what is trained, and is told how it goes."""

    def next(self) -> Planned | None:
        """The next training, or ``None`` if there is none for now."""

    def start(self, run: Planned) -> None:
        """A training has begun."""

    def report(self, run: Planned, epoch: int, value: float | None) -> bool:
        """A training has done an epoch; returns whether it goes on."""

    def end(self, run: Planned, outcome: Outcome) -> None:
        """A training has ended."""


def slots(jobs: int | None, trainings: int, config: dict[str, Any]) -> list[Slot]:
    """What each of the trainings that run at once has of the machine.

    Args:
        jobs: How many run at once; ``None`` for one for each GPU or, without any, each core.
        trainings: How many there are.
        config: A configuration of ``fit``.

    Example:
        >>> len(slots(4, 2, {"trainer": {"accelerator": "cpu"}}))
        2
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = torch.cuda.device_count() if config["trainer"]["accelerator"] in ("auto", "gpu", "cuda") else 0
    count = min(jobs or gpus or cores, trainings)
    threads = max(1, min(torch.get_num_threads(), cores // count))
    if not gpus:
        return [Slot(threads)] * count
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else list(map(str, range(gpus)))
    return [Slot(threads, {"CUDA_VISIBLE_DEVICES": names[number % gpus]}) for number in range(count)]


class _Running:
    def __init__(self, run: Planned, slot: Slot, process: BaseProcess, channel: connection.Connection) -> None:
        self.run, self.slot, self.process = run, slot, process
        self.channel: connection.Connection | None = channel


class Pool:
    """Runs trainings in processes that are forked from one which has imported everything.

    Args:
        free: What each of those that run at once has of the machine.
        metric: What is compared.
        test: ``last``, ``best`` or, for no test, ``None``.
        classes: Class paths whose modules are imported once for all.
    """

    def __init__(self, free: list[Slot], metric: str, test: str | None, classes: Iterable[str]) -> None:
        self._free, self._metric, self._test = list(free), metric, test
        self._running: list[_Running] = []
        self._context = _context(classes)

    def run(self, source: Source) -> None:
        """Runs all that a source has.

        Args:
            source: The source.
        """
        try:
            self._start(source)
            while self._running:
                self._wait(source)
                self._start(source)
        finally:
            self._end()

    def _start(self, source: Source) -> None:
        while self._free and (run := source.next()) is not None:
            slot = self._free.pop(0)
            ours, theirs = self._context.Pipe()
            # The server that forks it may have been started by an earlier sweep, with another environment.
            given = Slot(slot.threads, {**os.environ, **slot.environment})
            process = self._context.Process(target=work, args=(run, self._metric, self._test, given, theirs))  # type: ignore[attr-defined]
            process.start()
            theirs.close()
            self._running.append(_Running(run, slot, process, ours))
            source.start(run)

    def _wait(self, source: Source) -> None:
        channels = [one.channel for one in self._running if one.channel is not None]
        ready = set(connection.wait([*channels, *(one.process.sentinel for one in self._running)]))
        for one in list(self._running):
            if one.channel in ready and one.channel is not None:
                try:
                    epoch, value = one.channel.recv()
                    one.channel.send(source.report(one.run, epoch, value))
                except (EOFError, OSError):  # it has ended
                    one.channel = None
            if one.process.sentinel in ready:
                one.process.join()
                self._running.remove(one)
                self._free.append(one.slot)
                source.end(one.run, kept(one.run) or failure(one.run, one.process.exitcode))

    def _end(self) -> None:
        """Ends what still runs, with its checkpoints."""
        for one in self._running:
            one.process.terminate()
            if one.channel is not None:
                one.channel.close()  # so that it waits for no answer
        for one in self._running:
            one.process.join(PATIENCE)
            one.process.kill()
        self._running.clear()


def _context(classes: Iterable[str]) -> BaseContext:
    """Where there is no fork, each process imports all by itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    of_main = [one.__name__ for one in vars(sys.modules["__main__"]).values() if isinstance(one, ModuleType)]
    modules = ["rbp_lightning.cli.sweep.worker", *of_main, *(one.rpartition(".")[0] for one in classes)]
    context.set_forkserver_preload(list(dict.fromkeys(modules)))
    with _path_in_environment():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _path_in_environment() -> Iterator[None]:
    """The server looks for what it imports where its environment says, not where this process does."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
