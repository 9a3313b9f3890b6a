"""Differentiates a replicated computation of which the processes compute parts."""

from typing import Any

import torch
from torch import Tensor
from torch import distributed as dist


def replicated(tensor: Tensor) -> Tensor:
    """Marks a tensor with the same value in every process, which the processes use for different parts of a batch.

    The value is unchanged, and the gradient is averaged over the processes. An update that takes gradient steps with
    respect to ``replicated`` parameters, on each process's part of the batch, thus takes the step of the whole batch in
    every process, and its VJPs and JVPs are those of the whole batch. Without other processes it does nothing.

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
    """The identity, whose derivative is ``_Average``, to any order."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        return tensor.view_as(tensor)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        averaged: Tensor = _Average.apply(gradient)  # type: ignore[no-untyped-call]
        return averaged


class _Average(torch.autograd.Function):
    """The mean over the processes, whose derivative is ``_Replicated``."""

    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        average = tensor / dist.get_world_size()  # gloo does not support a mean
        dist.all_reduce(average)
        return average

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        shared: Tensor = _Replicated.apply(gradient)  # type: ignore[no-untyped-call]
        return shared
