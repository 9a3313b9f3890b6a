"""Memory that a computation needs at its peak."""

import os
from types import TracebackType

import torch
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

# The profiler's library would print a line at each start and stop.
os.environ.setdefault("KINETO_LOG_LEVEL", "99")


class PeakMemory:
    """Most bytes that are allocated at a time within a block of code, beyond those before it, temporaries among them.

    It is what the device's allocator reports, by the profiler on a CPU. Python's own objects are not among it.

    Args:
        device: ``"cpu"`` or ``"cuda"``.

    Attributes:
        bytes: The peak, once the block is left.

    Example:
        >>> with PeakMemory() as peak:
        ...     _ = torch.zeros(1000).add(1), torch.zeros(2000).add_(1)  # two of the first size are freed but one
        >>> peak.bytes
        12000
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device = device
        self.bytes = 0

    def __enter__(self) -> "PeakMemory":
        if self.device == "cuda":
            torch.cuda.synchronize()
            self._before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
        else:
            self._profile = profile(activities=[ProfilerActivity.CPU], profile_memory=True)
            self._profile.__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device == "cuda":
            self.bytes = torch.cuda.max_memory_allocated() - self._before
            return
        self._profile.__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        events = self._profile.profiler.kineto_results.events()  # type: ignore[union-attr]
        allocated = 0
        for event in sorted(events, key=lambda event: event.start_ns()):
            if event.name() == "[memory]" and event.device_type() == DeviceType.CPU:
                allocated += event.nbytes()  # negative where it is a release
                self.bytes = max(self.bytes, allocated)
