"""Runs several steps of an iteration with one launch of a CUDA graph."""

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
"""One step of an iteration, on leaves."""

Replay: TypeAlias = Callable[[Vector], list[Vector]]
"""Takes the leaves of an iterate and returns those of the next iterates, in new tensors."""

_refused: set[Place] = set()
"""Lines of the user's code whose steps could not be captured."""


class StepsAhead:
    """A step of an iteration that computes several iterates in advance with a CUDA graph.

    For a small network, launching the kernels of a step takes longer than running them. Once the step has been applied
    to its own results ``2 * count`` times in a row, ``count`` steps are captured and launched at once, and their
    results are returned one by one. Results that are not needed, because the iteration stops or continues from another
    iterate, are discarded. Steps that autograd records are taken one by one.

    Steps are also taken one by one on other devices, if several processes share the update, since they must take the
    same steps and might not all succeed in capturing them, and if the step cannot be captured, for example because it
    reads values from the device; that is warned about once per line of the user's code.

    Args:
        step: The step.
        count: Number of steps in a graph, at least 2.
        place: The line of the user's code that called the solve.
        prepare: Makes the step that is captured, on the capture's stream, if what it needs must be computed there;
            ``None`` captures ``step``.

    Attributes:
        replays: Number of launches of the graph.

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
        """Takes a step.

        Args:
            vector: Leaves of h.
        """
        consecutive = len(vector) == len(self._last) and all(map(operator.is_, vector, self._last))
        self._in_a_row = self._in_a_row + 1 if consecutive else 0
        taped = torch.is_grad_enabled()
        if taped or not consecutive:
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
                    f"The steps of this solve cannot be captured in a CUDA graph, and are taken one by one: set "
                    f"graph_steps=0, or do not read values from the device in the update "
                    f"({str(reason).splitlines()[0]}).",
                    UserWarning,
                    self._place.filename,
                    self._place.lineno,
                )
                return
        self._ahead.extend(self._replay(vector))
        self.replays += 1


def record_cuda_graph(prepare: Callable[[], Step], vector: Vector, count: int) -> Replay:
    """Captures several steps in a CUDA graph.

    Args:
        prepare: Makes the step.
        vector: Leaves of the first iterate, on a CUDA device.
        count: Number of steps.

    Raises:
        RuntimeError: If a step contains an operation that cannot be captured.
    """
    device = vector[0].device
    with torch.cuda.device(device):
        stream, current = torch.cuda.Stream(), torch.cuda.current_stream()  # type: ignore[no-untyped-call]
        first = [leaf.clone() for leaf in vector]
        stream.wait_stream(current)
        with torch.cuda.stream(stream):
            step = prepare()
            step(first)  # warm-up: allocates cuBLAS workspaces
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
        copies: list[list[Tensor]] = [list(leaf.clone().unbind()) for leaf in results]  # a replay overwrites results
        return [list(leaves) for leaves in zip(*copies, strict=True)]

    return replay


RECORDERS: dict[str, Callable[[Callable[[], Step], Vector, int], Replay]] = {"cuda": record_cuda_graph}
"""The function that captures steps, by type of device."""
