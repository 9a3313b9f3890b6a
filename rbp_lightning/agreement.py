"""What the processes decide together that share an update.

The parameters of a sharded module are gathered from all its processes each time that it is applied or differentiated.
So these have to apply the update, and take products with its Jacobian, equally often: whatever a solve reads off its
device to decide on its next step is reduced over the processes here. Without such a module nothing is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, NamedTuple, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, distributed, nn

from rbp_lightning.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.fsdp import FSDPModule

Number = TypeVar("Number", int, float)


class Sharing(NamedTuple):
    """The processes that share an update.

    Attributes:
        groups: Their process groups; of a mesh of several dimensions one of each.
    """

    groups: tuple[ProcessGroup, ...]

    @property
    def device(self) -> str:
        """The device whose tensors all of the groups reduce."""
        return "cuda" if all(distributed.get_backend(group) == "nccl" for group in self.groups) else "cpu"


_sharing: ContextVar[tuple[Sharing, ...]] = ContextVar("sharing", default=())
_found: WeakKeyDictionary[nn.Module, Sharing] = WeakKeyDictionary()


@contextmanager
def agreeing(shared: nn.Module | ProcessGroup) -> Iterator[None]:
    """Context in which solves decide together with the processes that share their update.

    A ``FixedPointLayer`` does it for its cell, and an estimator that is a Trainer's callback for the LightningModule.
    The backward pass may come after the context.

    Args:
        shared: A module, whose parameters tell with whom it is shared if it is (``fully_shard``, tensor parallelism);
            or the process group over which the update communicates.

    Raises:
        UserError: If it is neither.

    Example:
        >>> cell = torch.nn.Linear(4, 4)  # of one process
        >>> with agreeing(cell):
        ...     NeumannRBP()(lambda h: 0.1 * cell(h), torch.ones(4)).converged
        True
    """
    sharing = sharing_of(shared) if isinstance(shared, nn.Module) else _of_group(shared)
    with in_sharing(sharing or current_sharing()):
        yield


def _of_group(group: ProcessGroup) -> Sharing:
    if not distributed.is_available() or not isinstance(group, distributed.ProcessGroup):
        raise UserError(f"agreeing: shared={group!r} must be a torch.nn.Module or a process group.")
    return Sharing((group,))


def sharing_of(module: nn.Module) -> Sharing | None:
    """With whom a module is shared; ``None`` if it is not.

    Args:
        module: The module.

    Example:
        >>> sharing_of(torch.nn.Linear(2, 2)) is None
        True
    """
    if not distributed.is_available() or not distributed.is_initialized():
        return None
    if module not in _found:
        for part in fully_sharded_parts(module):
            part.reshard()  # else its parameters may be whole just now, and tell nothing
        meshes = dict.fromkeys(getattr(parameter, "device_mesh", None) for parameter in module.parameters())
        groups = [mesh.get_group(index) for mesh in meshes if mesh is not None for index in range(mesh.ndim)]
        shared = tuple(group for group in dict.fromkeys(groups) if group.size() > 1)
        if not shared:
            return None
        _found[module] = Sharing(shared)
    return _found[module]


def fully_sharded_parts(module: nn.Module) -> list[FSDPModule]:
    """The modules in a module, itself included, that ``torch.distributed.fsdp.fully_shard`` has sharded."""
    if not distributed.is_available() or not distributed.is_initialized():
        return []
    try:
        from torch.distributed.fsdp import FSDPModule  # slow to import
    except ImportError:  # before PyTorch 2.6
        return []
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def current_sharing() -> Sharing | None:
    """With whom decisions are taken here; ``None`` for nobody."""
    stack = _sharing.get()
    return stack[-1] if stack else None


@contextmanager
def in_sharing(sharing: Sharing | None) -> Iterator[None]:
    """Context in which decisions are taken with some processes.

    Args:
        sharing: Which; ``None`` for nobody else.
    """
    token = _sharing.set(() if sharing is None else (*_sharing.get(), sharing))
    try:
        yield
    finally:
        _sharing.reset(token)


def begin_agreeing(module: nn.Module) -> None:
    """Has decisions taken with those that share a module, if any, until ``end_agreeing``; again is no more.

    Args:
        module: The module.
    """
    sharing = sharing_of(module)
    if sharing is not None and sharing not in _sharing.get():
        _sharing.set((*_sharing.get(), sharing))


def end_agreeing(module: nn.Module) -> None:
    """Ends what ``begin_agreeing`` began."""
    sharing = _found.get(module)
    _sharing.set(tuple(one for one in _sharing.get() if one is not sharing))


def largest(figures: Tensor) -> Tensor:
    """The largest of each figure over the processes, to be read: an infinity stands for NaN among several of them.

    Args:
        figures: A tensor of figures.

    Example:
        >>> largest(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    sharing = current_sharing()
    if sharing is None:
        return figures
    # What a backend makes of NaN depends on the backend.
    return _reduced(figures.nan_to_num(float("inf"), float("inf"), -float("inf")), distributed.ReduceOp.MAX, sharing)


def largest_of(number: Number) -> Number:
    """The largest of a number over the processes.

    Args:
        number: The number here.

    Example:
        >>> largest_of(3)
        3
    """
    if current_sharing() is None:
        return number
    found: Number = largest(torch.tensor(number)).item()  # type: ignore[assignment]
    return found


def count_of(flags: Tensor) -> tuple[int, int]:
    """How many flags are set in all of the processes, and how many there are; waits for the device.

    Args:
        flags: Bool, one for each sample here.

    Example:
        >>> count_of(torch.tensor([True, False, True]))
        (2, 3)
    """
    found, samples = total(torch.stack([flags.sum(), torch.ones_like(flags).sum()])).tolist()
    return found, samples


def total(figures: Tensor) -> Tensor:
    """The sum of each figure over the processes, to be read.

    Args:
        figures: A tensor of figures.
    """
    sharing = current_sharing()
    return figures if sharing is None else _reduced(figures.clone(), distributed.ReduceOp.SUM, sharing)


def _reduced(own: Tensor, operation: distributed.ReduceOp.RedOpType, sharing: Sharing) -> Tensor:
    figures = own.detach().to(sharing.device)
    for group in sharing.groups:
        distributed.all_reduce(figures, operation, group)
    return figures


def anywhere(flag: Tensor | bool) -> bool:
    """Whether something holds in any of the processes; waits for the device.

    Args:
        flag: Whether it holds here: of one element.

    Example:
        >>> anywhere(torch.tensor(True)), everywhere(torch.tensor(True)), anywhere(False)
        (True, True, False)
    """
    if current_sharing() is None:
        return bool(flag)
    return bool(largest(torch.as_tensor(flag).float()) > 0)


def everywhere(flag: Tensor | bool) -> bool:
    """Whether something holds in all of the processes; waits for the device.

    Args:
        flag: Whether it holds here: of one element.
    """
    return bool(flag) if current_sharing() is None else not anywhere(~torch.as_tensor(flag))


def alike(count: int) -> bool:
    """Whether a number is the same in all of the processes.

    Args:
        count: The number here.
    """
    most, least = largest(torch.tensor([float(count), -float(count)])).tolist()
    return bool(most == -least)


def speaks() -> bool:
    """Whether this process is the one that says what all of them found."""
    sharing = current_sharing()
    return sharing is None or all(group.rank() == 0 for group in sharing.groups)


def own_part(tensor: Tensor) -> Tensor:
    """What this process holds of a tensor: of one that is distributed its part, of another one all.

    Args:
        tensor: The tensor.
    """
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
