"""The memory that a computation takes at its peak."""

import gc
import itertools
import os
from collections.abc import Callable

os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # read at the first import of torch; two lines a recording else

import torch
from torch.profiler import ProfilerActivity, profile

from rbp_lightning.errors import UserError


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Most bytes that a computation holds at once, temporaries included, beyond what was held before it.

    It is what the device's allocator says: CUDA's keeps the peak itself, and of a CPU's the profiler records every
    allocation and release. A release of what was held before the computation is not seen on a CPU.

    Args:
        run: The computation. On CUDA the first one allocates workspaces that stay, so run it once before.
        device: What it computes on, a CPU or a CUDA device.

    Raises:
        UserError: If the device is another one.
    """
    gc.collect()  # what is left of earlier computations would be released during this one
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    if device.type != "cpu":
        raise UserError(f"peak_bytes: device={str(device)!r} cannot be measured on: give it a CPU or a CUDA device.")
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as recorded:
        run()
    # The public events attribute memory to operators, after which the order of allocations and releases is lost.
    events = recorded.profiler.kineto_results.events()
    memory = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
    sizes: list[int] = [event.nbytes() for event in memory]
    return max(itertools.accumulate(sizes, initial=0))
