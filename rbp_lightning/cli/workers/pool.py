"""A pool of worker processes, forked from a server that has imported everything once."""

import contextlib
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from multiprocessing import connection, forkserver
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from types import ModuleType
from typing import Any, Protocol, TypeVar

import torch

from rbp_lightning.cli.workers.worker import Job, Slot, last_line, work

EXIT_SECONDS = 60
"""Seconds that a job gets to exit, a training with a checkpoint."""

J = TypeVar("J", bound=Job)


class Source(Protocol[J]):
    """Hands out jobs, and receives reports on their progress."""

    def next(self) -> J | None:
        """Returns the next job, or ``None`` if there is none for now."""

    def start(self, job: J) -> None:
        """Called when a job has started."""

    def report(self, job: J, progress: Any) -> bool:
        """Called when a job reports its progress; returns whether it is to continue."""

    def end(self, job: J, result: Any) -> None:
        """Called when a job has ended with a result."""

    def fail(self, job: J, error: str) -> None:
        """Called when a job has ended without one, with the reason in one line."""


def slots(jobs: int | None, count: int, gpus: bool = True, threads: int | None = None) -> list[Slot]:
    """Divides the machine into slots, one for each job at a time.

    Args:
        jobs: The number of jobs at once; ``None`` for one per GPU or, without GPUs, one per core.
        count: The number of jobs.
        gpus: Whether the jobs use GPUs.
        threads: The most threads of a job; ``None`` for an equal share.

    Example:
        >>> len(slots(4, 2, gpus=False))
        2
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    found = torch.cuda.device_count() if gpus else 0
    most = min(jobs or found or cores, count)
    share = min(threads or torch.get_num_threads(), max(1, cores // most))
    if not found:
        return [Slot(share)] * most
    given = os.environ.get("CUDA_VISIBLE_DEVICES")
    names = given.split(",") if given else list(map(str, range(found)))
    return [Slot(share, {"CUDA_VISIBLE_DEVICES": names[number % found]}) for number in range(most)]


class _Running:
    def __init__(self, job: Any, slot: Slot, process: BaseProcess, channel: connection.Connection) -> None:
        self.job, self.slot, self.process = job, slot, process
        self.channel: connection.Connection | None = channel
        self.results: list[Any] = []  # at most one


class Pool:
    """Executes each job in a worker process of its own, forked from a server that has imported everything.

    Args:
        free: The slots, one for each job at a time.
        modules: The modules that the server imports.
    """

    def __init__(self, free: list[Slot], modules: Iterable[str]) -> None:
        self._free = list(free)
        self._running: list[_Running] = []
        self._context = _context(modules)

    def run(self, source: Source[J]) -> None:
        """Executes all jobs of a source.

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

    def _start(self, source: Source[J]) -> None:
        while self._free and (job := source.next()) is not None:
            slot = self._free.pop(0)
            channel, worker_channel = self._context.Pipe()
            # An earlier pool may have started the server, with another environment.
            worker_slot = Slot(slot.threads, {**os.environ, **slot.environment})
            arguments = (job, worker_slot, worker_channel)
            process = self._context.Process(target=work, args=arguments)  # type: ignore[attr-defined]
            process.start()
            worker_channel.close()
            self._running.append(_Running(job, slot, process, channel))
            source.start(job)

    def _wait(self, source: Source[J]) -> None:
        channels = [one.channel for one in self._running if one.channel is not None]
        ready = set(connection.wait([*channels, *(one.process.sentinel for one in self._running)]))
        for one in list(self._running):
            ended = one.process.sentinel in ready
            if one.channel in ready or ended:
                _receive(one, source)
            if ended:
                one.process.join()
                self._running.remove(one)
                self._free.append(one.slot)
                if one.results:
                    source.end(one.job, one.results[0])
                else:
                    source.fail(one.job, _reason(one))

    def _end(self) -> None:
        """Ends the remaining jobs, trainings with a checkpoint."""
        for one in self._running:
            one.process.terminate()
            if one.channel is not None:
                one.channel.close()  # so that it does not wait for an answer
        for one in self._running:
            one.process.join(EXIT_SECONDS)
            one.process.kill()
        self._running.clear()


def _receive(one: _Running, source: Source[J]) -> None:
    """Takes what a worker has sent, which may have ended since."""
    try:
        while one.channel is not None and one.channel.poll():
            ended, content = one.channel.recv()
            if ended:
                one.results.append(content)
            else:
                one.channel.send(source.report(one.job, content))
    except (EOFError, OSError):  # it has ended
        one.channel = None


def _reason(one: _Running) -> str:
    """Says why a job failed whose process has ended without a result."""
    status = one.process.exitcode
    if status is not None and status < 0:
        return f"ended by {signal.Signals(-status).name}"
    return last_line(one.job.log)


def _context(modules: Iterable[str]) -> BaseContext:
    """Starts the server that workers are forked from; without fork, each process imports everything itself."""
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    imported = [value.__name__ for value in vars(sys.modules["__main__"]).values() if isinstance(value, ModuleType)]
    context.set_forkserver_preload(list(dict.fromkeys([work.__module__, *imported, *modules])))
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
