"""A tape that keeps no tensors of its steps, and makes them again in the backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from rbp_lightning.errors import UserError
from rbp_lightning.reporting import ignoring


class _Segment:
    """Some steps, the random numbers and the autocast that they began with, and what they have saved."""

    def __init__(self, again: Callable[[], object], device: torch.device) -> None:
        self._again, self._device = again, device
        self._generators = torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None
        self._autocast = torch.get_autocast_dtype(device.type), torch.is_autocast_enabled(device.type)
        self.count = 0
        self.live: dict[int, Tensor] = {}
        self._shapes: list[torch.Size] = []
        self._versions: dict[int, int] = {}

    def save(self, tensor: Tensor) -> None:
        """Notes a tensor, and holds it until it is released."""
        if tensor.is_leaf and tensor.requires_grad:  # a parameter, which must not change until it is used again
            self._versions[self.count] = tensor._version
        self.live[self.count] = tensor.detach()
        self._shapes.append(tensor.shape)
        self.count += 1

    def made_again(self) -> list[tuple[Tensor, int]]:
        """Takes the steps again, with what they began with; returns the tensors that are saved, and their versions."""
        made: list[tuple[Tensor, int]] = []

        def pack(tensor: Tensor) -> Tensor:
            made.append((tensor.detach(), tensor._version))
            return made[-1][0]

        device, (cpu, cuda) = self._device, self._generators
        dtype, enabled = self._autocast
        with torch.random.fork_rng([] if cuda is None else [device]), torch.autocast(device.type, dtype, enabled):
            torch.set_rng_state(cpu)
            if cuda is not None:
                torch.cuda.set_rng_state(cuda, device)
            # Failures of solves within were reported.
            with torch.enable_grad(), ignoring(), saved_tensors_hooks(pack, lambda tensor: tensor):
                self._again()
        same = [tensor.shape for tensor, _ in made] == self._shapes
        if not same or any(made[index][1] != version for index, version in self._versions.items()):
            raise UserError(
                "The update did something else when it was run again in the backward pass: leave its parameters as "
                "they are until then, and what it computes once, as in torch.nn.utils.parametrize.cached, or use BPTT."
            )
        return made


class Replay:
    """Has segments of a computation keep no tensors for the backward pass, which runs each segment again instead.

    As ``torch.utils.checkpoint`` without reentry, but for a computation that finds out as it runs how long it is. The
    tensors of one segment are there at a time.

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
        self._made: tuple[_Segment, list[tuple[Tensor, int]]] | None = None

    def __enter__(self) -> "Replay":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self.release()
        if self._hooks is not None:
            self._hooks.__exit__(kind, error, trace)
        self._segment = self._hooks = None  # which hold this in turn

    def begin(self, again: Callable[[], object], device: torch.device) -> None:
        """Begins a segment: what is saved until the next one begins, or the context ends, is made again.

        Args:
            again: Runs the segment again. It must hold no tensor of the tape, which would then hold itself.
            device: Where it computes.
        """
        self.release()
        if self._hooks is None:  # without a segment tensors are saved as always
            self._hooks = saved_tensors_hooks(self._pack, self._unpack)
            self._hooks.__enter__()
        self._segment = _Segment(again, device)

    def release(self) -> None:
        """Lets go of what the segment has saved so far: a step is over, and whatever it differentiated in itself."""
        if self._segment is not None:
            self._segment.live.clear()

    def _pack(self, tensor: Tensor) -> tuple[_Segment, int]:
        assert self._segment is not None  # it is called after ``begin`` alone
        self._segment.save(tensor)
        return self._segment, self._segment.count - 1

    def _unpack(self, saved: tuple[_Segment, int]) -> Tensor:
        segment, index = saved
        if (live := segment.live.get(index)) is not None:
            return live
        if self._made is None or self._made[0] is not segment:
            self._made = None  # frees the others before there are these
            self._made = segment, segment.made_again()
        tensor, version = self._made[1][index]
        if tensor._version != version:
            raise UserError("The update changes in place what its derivative needs: it must leave that as it is.")
        return tensor
