"""Peak memory of a computation."""

import gc
import itertools
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from rbp_lightning.errors import UserError


class PeakMemory:
    """Peak of the bytes allocated in a block of code, temporaries included, beyond those allocated before it.

    CUDA's allocator keeps the peak itself. On a CPU, the profiler records every allocation and release, except releases
    of memory that was allocated before the block. Garbage collection is off within the block, so that the peak does not
    depend on when it runs.

    Args:
        device: The device of the computation, a CPU or a CUDA device.

    Attributes:
        bytes: The peak, after the block.

    Raises:
        UserError: If the device is neither.

    Example:
        >>> with PeakMemory(torch.device("cpu")) as peak:
        ...     _ = torch.zeros(1000).add(1), torch.zeros(2000).add_(1)  # 8,000 bytes, then 4,000 + 8,000
        >>> peak.bytes // 1000
        12
    """

    def __init__(self, device: torch.device) -> None:
        if device.type not in ("cpu", "cuda"):
            raise UserError(f"PeakMemory: device={str(device)!r} is neither a CPU nor a CUDA device: give it one.")
        self.device = device
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        gc.collect()  # otherwise leftovers of earlier computations may be released during this one
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._recorded = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._recorded.__enter__()
        self._collects = gc.isenabled()
        gc.disable()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._collects:
            gc.enable()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
            return
        self._recorded.__exit__(kind, error, trace)
        # The public events attribute memory to operators, and lose the order of allocations and releases.
        profiler: Any = self._recorded.profiler
        events = profiler.kineto_results.events()
        memory = sorted((event for event in events if event.name() == "[memory]"), key=lambda event: event.start_ns())
        self.bytes = max(itertools.accumulate((event.nbytes() for event in memory), initial=0))


def peak_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Peak bytes of a computation, as ``PeakMemory`` measures them.

    Args:
        run: The computation. On CUDA, run it once before: the first run allocates workspaces that stay.
        device: The device of the computation, a CPU or a CUDA device.
    """
    with PeakMemory(device) as peak:
        run()
    return peak.bytes
