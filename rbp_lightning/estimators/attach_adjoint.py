"""Replaces or observes a gradient in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from rbp_lightning.estimators.derivative_limit import refuse_order
from rbp_lightning.estimators.transforms import for_each_in_batch, is_batched
from rbp_lightning.pytree import Vector


def attach_adjoint(function: Callable[[Vector], Vector], vector: Vector, values: Vector | None = None) -> list[Tensor]:
    """Returns copies of some tensors, whose gradient is replaced in the backward pass.

    Copies can be changed in place, while autograd may have saved the tensors themselves.

    Args:
        function: Maps the gradients to those that replace them.
        vector: The tensors.
        values: Values of the copies; ``None`` for those of the tensors.

    Raises:
        NotImplementedError: In the backward pass, if it is run with ``create_graph=True``.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> attach_adjoint(lambda gradient: [2 * leaf for leaf in gradient], [weight])[0].sum().backward()
        >>> weight.grad
        tensor([2., 2.])
    """
    return list(_AttachAdjoint.apply(function, values, *vector))  # type: ignore[no-untyped-call]


def watch_gradient(observe: Callable[[Vector], object], vector: Vector, values: Vector | None = None) -> list[Tensor]:
    """Returns copies of some tensors, whose gradient is observed in the backward pass.

    Args:
        observe: Called with the gradients, unless they are batched.
        vector: The tensors.
        values: Values of the copies; ``None`` for those of the tensors.

    Raises:
        NotImplementedError: In the backward pass, if it is run with ``create_graph=True``.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> watch_gradient(print, [weight])[0].sum().backward()
        (tensor([1., 1.]),)
    """
    return list(_WatchGradient.apply(observe, values, *vector))  # type: ignore[no-untyped-call]


class _AttachAdjoint(torch.autograd.Function):
    """A copy, whose backward replaces the gradient by the result of the function."""

    # No setup_context: with one, PyTorch inspects the signature at every call.
    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Vector], Any], values: Vector | None, *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.function = function
        return tuple(leaf.clone() for leaf in (leaves if values is None else values))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # ``once_differentiable`` would silently drop parts of a second derivative.
        if torch.is_grad_enabled():
            refuse_order(1)
        return None, None, *for_each_in_batch(lambda *leaves: ctx.function(leaves), gradients)


class _WatchGradient(_AttachAdjoint):
    """A copy, whose backward passes the gradient to the function and leaves it unchanged."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            refuse_order(1)
        if not is_batched(gradients):
            ctx.function(gradients)
        return None, None, *gradients
