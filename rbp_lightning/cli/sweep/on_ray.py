"""The trainings of a sweep on the machines of a Ray cluster, which share the sweep's folder."""

import asyncio
import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import Any

from rbp_lightning.cli.sweep.outcome import Outcome, failed
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.sweep.training import Epoch
from rbp_lightning.cli.workers import Pool, Slot, Source, last_line
from rbp_lightning.errors import UserError

Report = tuple[str, Epoch]


class RayPool:
    """Runs trainings wherever a Ray cluster has room, each with a GPU or, without any, a core.

    Args:
        jobs: How many at once; ``None`` for as many as the cluster has GPUs or cores.
        modules: The modules that are imported once in each of Ray's processes.

    Raises:
        UserError: If Ray is not installed, or does not start.
    """

    def __init__(self, jobs: int | None, modules: Iterable[str]) -> None:
        try:
            import ray
        except ImportError as error:
            raise UserError("--on ray: Ray is not installed: pip install ray.") from error
        self._ray: Any = ray
        path = os.pathsep.join(path for path in sys.path if path)
        environment = {"env_vars": {"PYTHONPATH": path}}
        quiet: dict[str, Any] = {"logging_level": logging.ERROR, "log_to_driver": False, "include_dashboard": False}
        try:
            # Connects to the cluster that RAY_ADDRESS names, or that this machine is part of, and makes one otherwise.
            ray.init(**quiet, runtime_env=environment)
        except Exception as error:  # a plain one where a machine takes more than Ray's 30 seconds to start
            problem = f"--on ray: Ray does not start: {str(error).rstrip('.')}"
            raise UserError(f"{problem}. Start it by `ray start --head` first, or leave --on out.") from error
        found = ray.cluster_resources()
        self._device = {"num_gpus": 1} if found.get("GPU") else {"num_cpus": 1}
        self._most = jobs or int(found.get("GPU") or found["CPU"])
        self._arguments = (list(modules), os.getcwd())

    def run(self, source: Source[Planned]) -> None:
        """Runs all that a source has.

        Args:
            source: The source.
        """
        ray = self._ray
        reports = ray.remote(num_cpus=0)(_ReportQueue).remote()
        train = ray.remote(max_retries=0, **self._device)(_train)
        running: dict[Any, Planned] = {}
        try:
            asked = reports.next.remote()
            while self._start(source, running, lambda run: train.remote(run, reports, *self._arguments)):
                (ready,), _ = ray.wait([asked, *running])
                if ready == asked:
                    folder, epoch = ray.get(asked)
                    for run in running.values():  # without one, its process was lost since
                        if str(run.folder) == folder:
                            reports.answer.remote(folder, source.report(run, epoch))
                    asked = reports.next.remote()
                    continue
                run = running.pop(ready)
                try:
                    source.end(run, ray.get(ready))
                except ray.exceptions.RayError:  # its machine is lost, say
                    source.fail(run, last_line(run.log))
        finally:
            ray.shutdown()

    def _start(self, source: Source[Planned], running: dict[Any, Planned], begin: Callable[[Planned], Any]) -> bool:
        while len(running) < self._most and (run := source.next()) is not None:
            running[begin(run)] = run
            source.start(run)
        return bool(running)


class _ReportQueue:
    """The reports of all trainings; each waits until the sweep has answered."""

    def __init__(self) -> None:
        self._reports: asyncio.Queue[Report] = asyncio.Queue()
        self._answers: dict[str, asyncio.Future[bool]] = {}

    async def report(self, folder: str, epoch: Epoch) -> bool:
        self._answers[folder] = asyncio.get_running_loop().create_future()
        await self._reports.put((folder, epoch))
        return await self._answers[folder]

    async def next(self) -> Report:
        return await self._reports.get()

    async def answer(self, folder: str, goes_on: bool) -> None:
        self._answers[folder].set_result(goes_on)


class _One:
    """A single training, for the pool of a process of Ray's."""

    outcome: Outcome

    def __init__(self, run: Planned, ask: Callable[[str, Epoch], bool]) -> None:
        self._left, self._ask = [run], ask

    def next(self) -> Planned | None:
        return self._left.pop() if self._left else None

    def start(self, run: Planned) -> None:
        pass

    def report(self, run: Planned, progress: Epoch) -> bool:
        return self._ask(str(run.folder), progress)

    def end(self, run: Planned, outcome: Outcome) -> None:
        self.outcome = outcome

    def fail(self, run: Planned, error: str) -> None:
        self.outcome = failed(error)


def _train(run: Planned, reports: Any, modules: list[str], folder: str) -> Outcome:
    import ray

    os.chdir(folder)
    device = {name: os.environ[name] for name in ("CUDA_VISIBLE_DEVICES",) if os.environ.get(name)}
    one = _One(run, lambda *report: ray.get(reports.report.remote(*report)))
    Pool([Slot(1, device)], modules).run(one)
    return one.outcome
