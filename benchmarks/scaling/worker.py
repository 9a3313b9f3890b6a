"""One of the processes of a measured training step."""

import statistics
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.profiler import ProfilerActivity, profile

from benchmarks.peak_memory import peak_bytes
from benchmarks.scaling.model import Job
from rbp_lightning import ConvergenceWarning, NeumannRBP, Picard

MESSAGES = (2**16, 2**20, 2**22)
"""Elements of the messages that latency and bandwidth are fitted to."""


class Cell(nn.Module):
    """h <- tanh(h W + x), with a symmetric W of spectral radius 0.9.

    Args:
        width: Units of a sample.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        basis = torch.linalg.qr(torch.randn(width, width))[0]
        self.weight = nn.Parameter((basis * torch.linspace(-0.9, 0.9, width)) @ basis.T)

    def forward(self, state: Tensor, drive: Tensor) -> Tensor:
        """Applies the update."""
        return torch.tanh(state @ self.weight + drive)


class Network(nn.Module):
    """The fixed point of a cell.

    Args:
        cell: The cell.
        job: The training step, with its numbers of steps and products.
    """

    def __init__(self, cell: nn.Module, job: Job) -> None:
        super().__init__()
        self.cell = cell
        self.estimator = NeumannRBP(job.products, Picard(job.steps, 0.0))

    def forward(self, drive: Tensor) -> Tensor:
        """Solves for the fixed point."""
        return self.estimator(lambda state: self.cell(state, drive), torch.zeros_like(drive)).state


def network(job: Job) -> tuple[nn.Module, Tensor]:
    """Makes the network of a job, shared as the job says, and the inputs of this process.

    Args:
        job: The training step; its number of parameters is a square.
    """
    torch.manual_seed(0)
    width = round(job.parameters**0.5)
    cell = Cell(width)
    drive = 0.1 * torch.randn(job.state // width, width)
    made: nn.Module = Network(cell, job)
    if job.sharing == "ddp":
        made = DistributedDataParallel(made)
    elif job.sharing != "one":
        from torch.distributed.fsdp import fully_shard

        fully_shard(cell, reshard_after_forward=job.sharing == "fsdp")
    return made, drive


def step_of(job: Job) -> Callable[[], None]:
    """Makes a job's training step, without the optimiser.

    Args:
        job: The training step.
    """
    module, drive = network(job)

    def step() -> None:
        module.zero_grad()
        module(drive).square().mean().backward()

    return step


def measured(jobs: Sequence[Job], repeats: int) -> list[dict[str, Any]]:
    """Runs training steps in turn, in this process.

    Args:
        jobs: The training steps.
        repeats: Number of repeats, after one that is not timed.

    Returns:
        For each training step CPU seconds, peak bytes of the allocator, and the number of collectives.
    """
    steps = [step_of(job) for job in jobs]
    found: list[dict[str, Any]] = [{"seconds": []} for _ in jobs]
    for repeat in range(-1, repeats):
        for step, one in zip(steps, found, strict=True):
            begin = time.process_time()
            step()
            if repeat >= 0:
                one["seconds"].append(time.process_time() - begin)
    for step, one in zip(steps, found, strict=True):
        one["bytes"] = peak_bytes(step, torch.device("cpu"))
        with profile(activities=[ProfilerActivity.CPU]) as recorded:
            step()
        one["collectives"] = sum(event.name.startswith("c10d::") for event in recorded.events() or ())
    return found


def message_seconds(repeats: int) -> dict[int, float]:
    """Median CPU seconds of an all-reduce, by its number of elements."""
    found = {}
    for elements in MESSAGES:
        message, times = torch.ones(elements), []
        for _ in range(repeats + 1):
            begin = time.process_time()
            dist.all_reduce(message)
            times.append(time.process_time() - begin)
        found[elements] = statistics.median(times[1:])
    return found


@contextmanager
def joined(rank: int, ranks: int, store: Path) -> Iterator[None]:
    """Joins the process group for the duration of the block.

    Args:
        rank: Rank of this process.
        ranks: Number of processes.
        store: The file through which they find each other.
    """
    place = f"file://{store}"
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=ranks, timeout=timedelta(minutes=10))
    try:
        yield
    finally:
        dist.destroy_process_group()


def rank_of(rank: int, ranks: int, store: Path, jobs: Sequence[Job], repeats: int) -> dict[str, Any]:
    """Measures jobs as one of several processes, or as the only one.

    Args:
        rank: Rank of this process.
        ranks: Number of processes.
        store: The file through which they find each other.
        jobs: The training steps.
        repeats: Number of repeats.

    Returns:
        The measurements of the jobs, and of messages.
    """
    torch.set_num_threads(1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        if ranks == 1:
            return {"jobs": measured(jobs, repeats)}
        with joined(rank, ranks, store):
            return {"messages": message_seconds(repeats), "jobs": measured(jobs, repeats)}
