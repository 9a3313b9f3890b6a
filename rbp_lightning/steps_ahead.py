"""Several steps of a map by one launch, on a CUDA device."""

import operator
import warnings
from collections import deque
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

from rbp_lightning.agreement import current_sharing
from rbp_lightning.pytree import Vector
from rbp_lightning.reporting import Place

Step: TypeAlias = Callable[[Vector], Vector]
"""A map of leaves."""

Replay: TypeAlias = Callable[[Vector], list[Vector]]
"""Takes the leaves of an iterate and returns those of the ones that follow it, in new tensors."""

_refused: set[Place] = set()
"""Lines of the user's code whose map could not be captured."""


class StepsAhead:
    """Applies a map, and where it is applied to its own results takes several of its steps ahead, by a CUDA graph.

    A step of a small network takes a GPU less time than it takes the host to launch its kernels. Once the map has been
    applied to its own results twice ``count`` times in a row, ``count`` more steps are captured and launched in one go,
    and their results are handed out one by one; those that are left when the iteration stops, or goes on from
    elsewhere, are dropped. Steps on a tape are taken one by one.

    A map that cannot be captured, as one that reads values off the device, is warned about once per line of the user's
    code and stepped one by one, as every map is on another device, and one that processes share: they have to take the
    same steps, and might not all capture it.

    Args:
        step: The map.
        count: How many steps a graph has, at least 2.
        place: The line of the user's code that is iterated.
        prepare: Makes the map that is captured, on the stream of the capture, where what is taped for it must be made
            anew; ``None`` captures ``step``.

    Attributes:
        replays: How often several steps were taken ahead.

    Example:
        >>> halve = StepsAhead(lambda vector: [vector[0] / 2], 4, Place("train.py", 12))
        >>> halve([torch.ones(1)])
        [tensor([0.5000])]
    """

    def __init__(
        self,
        step: Step,
        count: int,
        place: Place,
        prepare: Callable[[], Step] | None = None,
    ) -> None:
        self._step, self._count, self._place = step, count, place
        self._prepare = prepare or (lambda: step)
        self._ahead: deque[Vector] = deque()
        self._last: Vector = ()
        self._in_a_row = 0
        self._replay: Replay | None = None
        self.replays = 0

    def __call__(self, vector: Vector) -> Vector:
        """Applies the map.

        Args:
            vector: Leaves of h.
        """
        goes_on = len(vector) == len(self._last) and all(map(operator.is_, vector, self._last))
        self._in_a_row = self._in_a_row + 1 if goes_on else 0
        taped = torch.is_grad_enabled()
        if taped or not goes_on:
            self._ahead.clear()
        if not taped and not self._ahead and self._in_a_row >= 2 * self._count:
            self._take_ahead(vector)
        self._last = self._ahead.popleft() if self._ahead else self._step(vector)
        return self._last

    def _take_ahead(self, vector: Vector) -> None:
        if self._replay is None:
            record = RECORDERS.get(vector[0].device.type)
            if record is None or self._place in _refused or current_sharing() is not None:
                return
            try:
                self._replay = record(self._prepare, vector, self._count)
            except RuntimeError as reason:
                _refused.add(self._place)
                warnings.warn_explicit(
                    f"Its steps cannot be captured in a CUDA graph, and are taken one by one: leave graph_steps out, "
                    f"or keep the update from reading values off the device ({str(reason).splitlines()[0]}).",
                    UserWarning,
                    self._place.filename,
                    self._place.lineno,
                )
                return
        self._ahead.extend(self._replay(vector))
        self.replays += 1


def record_cuda_graph(prepare: Callable[[], Step], vector: Vector, count: int) -> Replay:
    """Captures several steps of a map.

    Args:
        prepare: Makes the map.
        vector: Leaves that the steps begin with, on a CUDA device.
        count: How many.

    Raises:
        RuntimeError: If a step does what cannot be captured.
    """
    device = vector[0].device
    with torch.cuda.device(device):
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        first = [leaf.clone() for leaf in vector]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            step = prepare()
            step(first)  # makes the workspaces of products
        current.wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        images: list[Vector] = [first]
        with torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local"):
            for _ in range(count):
                images.append(step(images[-1]))
            results = [torch.stack(leaves) for leaves in zip(*images[1:], strict=True)]

    def replay(start: Vector) -> list[Vector]:
        for leaf, other in zip(first, start, strict=True):
            leaf.copy_(other)
        graph.replay()
        kept: list[list[Tensor]] = [list(leaf.clone().unbind()) for leaf in results]  # the next replay overwrites them
        return [list(leaves) for leaves in zip(*kept, strict=True)]

    return replay


RECORDERS: dict[str, Callable[[Callable[[], Step], Vector, int], Replay]] = {"cuda": record_cuda_graph}
"""What captures steps, by the type of device."""
