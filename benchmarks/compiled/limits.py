"""How far a step of an update is from the device's limits: kernel launches, and the bytes that it has to move."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from benchmarks.timing import call_timer


@dataclass(frozen=True)
class StepLimits:
    """The time of a step and its lower bounds.

    Attributes:
        kernels: Kernels that a step launches.
        seconds: Time of a step.
        launching: Time of its kernel launches, one after another.
        moving: Time to read the weights and the state once, and to write the state.
    """

    kernels: int
    seconds: float
    launching: float
    moving: float


def launch_seconds(device: torch.device, calls: int = 2000) -> float:
    """Time of launching a kernel that does next to nothing."""
    number = torch.zeros((), device=device)
    return call_timer(lambda: number.add_(1)).timeit(calls).mean


def bytes_per_second(device: torch.device, size: int = 2**30) -> float:
    """Bandwidth of a copy, bytes read and bytes written together.

    Args:
        device: The device.
        size: Bytes to copy, many more than the caches hold.
    """
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * size / call_timer(lambda: target.copy_(source)).timeit(10).mean


def kernels_of(run: Callable[[], object]) -> int:
    """How many kernels a call launches on the CUDA device."""
    run()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CUDA]) as profiled:
        run()
        torch.cuda.synchronize()
    return sum(event.device_type.name == "CUDA" for event in profiled.events())


def step_limits(step: Callable[..., Tensor], state: Tensor, prepared: Sequence[Tensor], calls: int = 200) -> StepLimits:
    """Measures a step on the CUDA device that its state is on.

    Args:
        step: F, from a state and what was prepared to the next state.
        state: The state.
        prepared: What else it reads, such as weights.
        calls: The number of steps to average over.
    """
    with torch.no_grad():
        moved = sum(tensor.nbytes for tensor in prepared) + 2 * state.nbytes
        kernels = kernels_of(lambda: step(state, *prepared))
        seconds = call_timer(lambda: step(state, *prepared)).timeit(calls).mean
    return StepLimits(kernels, seconds, kernels * launch_seconds(state.device), moved / bytes_per_second(state.device))
