"""Differentiating a computation that all processes do alike, but for parts that they share out."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def replicated(tensor: Tensor) -> Tensor:
    """Marks a tensor that is the same in every process where its use is shared out among them.

    The value is unchanged; the gradient is averaged over the processes. An update whose gradient steps are of each
    process's own share of a batch, taken with respect to ``replicated`` parameters, thus takes the same step, that of
    the whole batch, in every process; and its VJPs and JVPs are those of the whole batch as well. Without processes it
    does nothing.

    Args:
        tensor: The tensor, of any shape.

    Example:
        >>> replicated(torch.ones(2))
        tensor([1., 1.])
    """
    if not dist.is_initialized() or dist.get_world_size() == 1:
        return tensor
    shared: Tensor = _Replicated.apply(tensor)  # type: ignore[no-untyped-call]
    return shared


class _Replicated(torch.autograd.Function):
    """The identity; each of the two functions is the other one's derivative, of whatever order."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        averaged: Tensor = _Average.apply(gradient)  # type: ignore[no-untyped-call]
        return averaged


class _Average(torch.autograd.Function):
    """The mean over the processes."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        average = tensor / dist.get_world_size()  # gloo has no mean of its own
        dist.all_reduce(average)
        return average

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        shared: Tensor = _Replicated.apply(gradient)  # type: ignore[no-untyped-call]
        return shared
