"""Reductions that make all processes sharing an update take the same decisions.

A sharded module gathers its parameters from all processes each time it is applied or differentiated. All processes
must therefore apply the update, and compute products with its Jacobian, equally often: every value that decides how a
solve continues is reduced over the processes here. Without a sharded module nothing is communicated.
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
        groups: Their process groups, one for each dimension of the device mesh.
    """

    groups: tuple[ProcessGroup, ...]

    @property
    def device(self) -> str:
        """A type of device whose tensors every group can reduce."""
        return "cuda" if all(distributed.get_backend(group) == "nccl" for group in self.groups) else "cpu"


_sharing: ContextVar[tuple[Sharing, ...]] = ContextVar("sharing", default=())
_found: WeakKeyDictionary[nn.Module, Sharing] = WeakKeyDictionary()


@contextmanager
def agreeing(shared: nn.Module | ProcessGroup) -> Iterator[None]:
    """Context manager in which all processes that share an update take the same number of solver steps.

    ``FixedPointLayer`` enters it for its cell, and an estimator used as a Trainer callback for the LightningModule.
    The backward pass may run after the context has ended.

    Args:
        shared: A module whose parameters may be sharded (``fully_shard``, tensor parallelism), or the process group
            over which the update communicates.

    Raises:
        UserError: If ``shared`` is neither.

    Example:
        >>> cell = torch.nn.Linear(4, 4)  # not sharded
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
    """The processes that share a module; ``None`` if it is not sharded.

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
            part.reshard()  # parameters that are gathered at the moment have no device mesh
        meshes = dict.fromkeys(getattr(parameter, "device_mesh", None) for parameter in module.parameters())
        groups = [mesh.get_group(index) for mesh in meshes if mesh is not None for index in range(mesh.ndim)]
        shared = tuple(group for group in dict.fromkeys(groups) if group.size() > 1)
        if not shared:
            return None
        _found[module] = Sharing(shared)
    return _found[module]


def fully_sharded_parts(module: nn.Module) -> list[FSDPModule]:
    """The submodules, including the module itself, that ``torch.distributed.fsdp.fully_shard`` has sharded."""
    if not distributed.is_available() or not distributed.is_initialized():
        return []
    try:
        from torch.distributed.fsdp import FSDPModule  # slow to import
    except ImportError:  # before PyTorch 2.6
        return []
    return [part for part in module.modules() if isinstance(part, FSDPModule)]


def current_sharing() -> Sharing | None:
    """The processes that share the current solve; ``None`` for a solve of this process alone."""
    stack = _sharing.get()
    return stack[-1] if stack else None


@contextmanager
def in_sharing(sharing: Sharing | None) -> Iterator[None]:
    """Context manager that sets the processes that share a solve.

    Args:
        sharing: The processes; ``None`` for this process alone.
    """
    token = _sharing.set(() if sharing is None else (*_sharing.get(), sharing))
    try:
        yield
    finally:
        _sharing.reset(token)


def begin_agreeing(module: nn.Module) -> None:
    """Enters ``agreeing(module)`` until ``end_agreeing``, if the module is sharded; repeated calls have no effect.

    Args:
        module: The module.
    """
    sharing = sharing_of(module)
    if sharing is not None and sharing not in _sharing.get():
        _sharing.set((*_sharing.get(), sharing))


def end_agreeing(module: nn.Module) -> None:
    """Ends the effect of ``begin_agreeing``."""
    sharing = _found.get(module)
    _sharing.set(tuple(one for one in _sharing.get() if one is not sharing))


def largest(figures: Tensor) -> Tensor:
    """The elementwise maximum over the processes, detached; with several processes NaN becomes infinity.

    Args:
        figures: The values of this process.

    Example:
        >>> largest(torch.tensor([1.0, 2.0]))
        tensor([1., 2.])
    """
    sharing = current_sharing()
    if sharing is None:
        return figures
    # Backends differ in how they reduce NaN.
    return _reduced(figures.nan_to_num(float("inf"), float("inf"), -float("inf")), distributed.ReduceOp.MAX, sharing)


def largest_of(number: Number) -> Number:
    """The maximum of a number over the processes.

    Args:
        number: The number of this process.

    Example:
        >>> largest_of(3)
        3
    """
    if current_sharing() is None:
        return number
    found: Number = largest(torch.tensor(number)).item()  # type: ignore[assignment]
    return found


def count_of(flags: Tensor) -> tuple[int, int]:
    """The number of flags that are set, and the number of flags, over all processes; synchronises with the device.

    Args:
        flags: Bool, one for each sample of this process.

    Example:
        >>> count_of(torch.tensor([True, False, True]))
        (2, 3)
    """
    found, samples = total(torch.stack([flags.sum(), torch.ones_like(flags).sum()])).tolist()
    return found, samples


def total(figures: Tensor) -> Tensor:
    """The elementwise sum over the processes, detached.

    Args:
        figures: The values of this process.
    """
    sharing = current_sharing()
    return figures if sharing is None else _reduced(figures.clone(), distributed.ReduceOp.SUM, sharing)


def _reduced(own: Tensor, operation: distributed.ReduceOp.RedOpType, sharing: Sharing) -> Tensor:
    figures = own.detach().to(sharing.device)
    for group in sharing.groups:
        distributed.all_reduce(figures, operation, group)
    return figures


def anywhere(flag: Tensor | bool) -> bool:
    """Whether a condition holds in any process; synchronises with the device.

    Args:
        flag: The condition in this process, a bool or a tensor of one element.

    Example:
        >>> anywhere(torch.tensor(True)), everywhere(torch.tensor(True)), anywhere(False)
        (True, True, False)
    """
    if current_sharing() is None:
        return bool(flag)
    return bool(largest(torch.as_tensor(flag).float()) > 0)


def everywhere(flag: Tensor | bool) -> bool:
    """Whether a condition holds in all processes; synchronises with the device.

    Args:
        flag: The condition in this process, a bool or a tensor of one element.
    """
    return bool(flag) if current_sharing() is None else not anywhere(~torch.as_tensor(flag))


def same_everywhere(count: int) -> bool:
    """Whether a number is the same in all processes.

    Args:
        count: The number of this process.
    """
    most, least = largest(torch.tensor([float(count), -float(count)])).tolist()
    return bool(most == -least)


def is_reporting_process() -> bool:
    """Whether this process is the one that reports for all that share the solve."""
    sharing = current_sharing()
    return sharing is None or all(group.rank() == 0 for group in sharing.groups)


def local_part(tensor: Tensor) -> Tensor:
    """The local shard of a distributed tensor; any other tensor as it is.

    Args:
        tensor: The tensor.
    """
    local: Tensor = tensor.to_local() if hasattr(tensor, "to_local") else tensor
    return local
