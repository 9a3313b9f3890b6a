"""A pool of worker processes, forked from a server that has imported everything once."""

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

from rbp_lightning.cli.sweep.outcome import Outcome, failure, read_outcome
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.sweep.worker import Slot, work

EXIT_SECONDS = 60
"""Seconds that a run gets to save its checkpoint and exit."""


class Source(Protocol):
    """Hands out runs, and receives reports on their progress."""

    def next(self) -> Planned | None:
        """Returns the next run, or ``None`` if there is none for now."""

    def start(self, run: Planned) -> None:
        """Called when a run has started."""

    def report(self, run: Planned, epoch: int, value: float | None) -> bool:
        """Called when a run has completed an epoch; returns whether it is to continue."""

    def end(self, run: Planned, outcome: Outcome) -> None:
        """Called when a run has ended."""


def slots(jobs: int | None, runs: int, config: dict[str, Any]) -> list[Slot]:
    """Divides the machine into slots, one for each run at a time.

    Args:
        jobs: The number of runs at once; ``None`` for one per GPU or, without GPUs, one per core.
        runs: The number of runs.
        config: The configuration of ``fit``.

    Example:
        >>> len(slots(4, 2, {"trainer": {"accelerator": "cpu"}}))
        2
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    gpus = torch.cuda.device_count() if config["trainer"]["accelerator"] in ("auto", "gpu", "cuda") else 0
    count = min(jobs or gpus or cores, runs)
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
    """Executes each run in a worker process of its own, forked from a server that has imported everything.

    Args:
        free: The slots, one for each run at a time.
        metric: The metric that is compared.
        test: ``last`` or ``best``; ``None`` for no test.
        classes: Class paths whose modules the server imports.
    """

    def __init__(self, free: list[Slot], metric: str, test: str | None, classes: Iterable[str]) -> None:
        self._free, self._metric, self._test = list(free), metric, test
        self._running: list[_Running] = []
        self._context = _context(classes)

    def run(self, source: Source) -> None:
        """Executes all runs of a source.

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
            channel, worker_channel = self._context.Pipe()
            # An earlier sweep may have started the server, with another environment.
            worker_slot = Slot(slot.threads, {**os.environ, **slot.environment})
            arguments = (run, self._metric, self._test, worker_slot, worker_channel)
            process = self._context.Process(target=work, args=arguments)  # type: ignore[attr-defined]
            process.start()
            worker_channel.close()
            self._running.append(_Running(run, slot, process, channel))
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
                source.end(one.run, read_outcome(one.run) or failure(one.run, one.process.exitcode))

    def _end(self) -> None:
        """Ends the remaining runs, each with a checkpoint."""
        for one in self._running:
            one.process.terminate()
            if one.channel is not None:
                one.channel.close()  # so that it does not wait for an answer
        for one in self._running:
            one.process.join(EXIT_SECONDS)
            one.process.kill()
        self._running.clear()


def _context(classes: Iterable[str]) -> BaseContext:
    """Starts the server that workers are forked from; without fork, each process imports everything itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    imported = [value.__name__ for value in vars(sys.modules["__main__"]).values() if isinstance(value, ModuleType)]
    modules = ["rbp_lightning.cli.sweep.worker", *imported, *(path.rpartition(".")[0] for path in classes)]
    context.set_forkserver_preload(list(dict.fromkeys(modules)))
    with _path_in_environment():
        forkserver.ensure_running()
    return context


@contextlib.contextmanager
def _path_in_environment() -> Iterator[None]:
    """Puts this process's import path into ``PYTHONPATH``, where the server looks for modules."""
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(path for path in sys.path if path)
    try:
        yield
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
