"""Activation checkpointing of segments, which are recomputed in the backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rbp_lightning.errors import UserError
from rbp_lightning.reporting import ignoring
from rbp_lightning.rng_states import get_rng_states, set_rng_states


class _Segment:
    """A segment: how to recompute it, and the random states, autocast mode and saved tensors of its first run."""

    def __init__(self, recompute: Callable[[], object], device: torch.device) -> None:
        self._recompute, self._device = recompute, device
        self._generators = get_rng_states([device])
        self._autocast = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        self.count = 0
        self.live: dict[int, Tensor] = {}
        self._shapes: list[torch.Size] = []
        self._versions: dict[int, int] = {}

    def save(self, tensor: Tensor) -> None:
        """Registers a saved tensor, and holds it until ``Replay.release``."""
        if tensor.is_leaf and tensor.requires_grad:  # a parameter, which must not change before the backward pass
            self._versions[self.count] = tensor._version
        self.live[self.count] = tensor.detach()
        self._shapes.append(tensor.shape)
        self.count += 1

    def recomputed(self) -> list[tuple[Tensor, int]]:
        """Recomputes the segment with its initial random states; returns the saved tensors and their versions."""
        saved: list[tuple[Tensor, int]] = []

        def pack(tensor: Tensor) -> Tensor:
            saved.append((tensor.detach(), tensor._version))
            return saved[-1][0]

        before = get_rng_states([self._device])
        set_rng_states(self._generators)
        try:
            mode = torch.autocast(self._device.type, *self._autocast)
            # Failures of nested solves were reported in the first run.
            with mode, torch.enable_grad(), ignoring(), saved_tensors_hooks(pack, lambda tensor: tensor):
                self._recompute()
        finally:
            set_rng_states(before)
        same = [tensor.shape for tensor, _ in saved] == self._shapes
        if not same or any(saved[index][1] != version for index, version in self._versions.items()):
            raise UserError(
                "The update did something else when it was recomputed in the backward pass: do not change its "
                "parameters, or values that it caches (torch.nn.utils.parametrize.cached), before then, or use BPTT."
            )
        return saved


class Replay:
    """Context manager in which segments of a computation save no tensors; the backward pass recomputes each segment.

    Like ``torch.utils.checkpoint`` with ``use_reentrant=False``, but for a computation whose length is not known in
    advance. The tensors of only one segment are in memory at a time.

    Example:
        >>> start = torch.tensor(0.5, requires_grad=True)
        >>> with Replay() as replay:
        ...     replay.begin(lambda: start.sin().cos(), start.device)
        ...     state = start.sin().cos()
        >>> state.backward()
        >>> start.grad  # -sin(sin(x)) cos(x)
        tensor(-0.4048)
    """

    def __init__(self) -> None:
        self._hooks: saved_tensors_hooks | None = None
        self._segment: _Segment | None = None
        self._recomputed: tuple[_Segment, list[tuple[Tensor, int]]] | None = None

    def __enter__(self) -> "Replay":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.release()
        if self._hooks is not None:
            self._hooks.__exit__(kind, error, trace)
        self._segment = self._hooks = None  # break the reference cycle

    def begin(self, recompute: Callable[[], object], device: torch.device) -> None:
        """Begins a segment, which lasts until the next one begins or the context ends.

        Args:
            recompute: Runs the segment again. It must not hold tensors of the graph, to avoid a reference cycle.
            device: The device of the computation.
        """
        self.release()
        if self._hooks is None:  # before the first segment, tensors are saved as usual
            self._hooks = saved_tensors_hooks(self._pack, self._unpack)
            self._hooks.__enter__()
        self._segment = _Segment(recompute, device)

    def release(self) -> None:
        """Releases the tensors saved so far: at the end of a step, any gradients within the step have been computed."""
        if self._segment is not None:
            self._segment.live.clear()

    def _pack(self, tensor: Tensor) -> tuple[_Segment, int]:
        assert self._segment is not None  # only called after ``begin``
        self._segment.save(tensor)
        return self._segment, self._segment.count - 1

    def _unpack(self, saved: tuple[_Segment, int]) -> Tensor:
        segment, index = saved
        if (live := segment.live.get(index)) is not None:
            return live
        if self._recomputed is None or self._recomputed[0] is not segment:
            self._recomputed = None  # frees the other segment first
            self._recomputed = segment, segment.recomputed()
        tensor, version = self._recomputed[1][index]
        if tensor._version != version:
            raise UserError("The update changes in place a tensor that its derivative needs: it must return a new one.")
        return tensor
