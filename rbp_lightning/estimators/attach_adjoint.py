"""Replacing a gradient in the backward pass."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from rbp_lightning.errors import UserError
from rbp_lightning.pytree import Vector


def attach_adjoint(function: Callable[[Vector], Vector], vector: Vector, values: Vector | None = None) -> list[Tensor]:
    """Returns copies of some tensors, whose gradient is replaced in the backward pass.

    They are copies, so that they may be changed in place: the tape may hold the tensors themselves.

    Args:
        function: Takes the gradients and returns those that replace them.
        vector: The tensors.
        values: What the copies hold; ``None`` for what the tensors hold.

    Raises:
        NotImplementedError: In the backward pass, if it is run with ``create_graph=True``.
        UserError: In the backward pass, if it is batched.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> attach_adjoint(lambda gradient: [2 * leaf for leaf in gradient], [weight])[0].sum().backward()
        >>> weight.grad
        tensor([2., 2.])
    """
    return list(_AttachAdjoint.apply(function, values, *vector))  # type: ignore[no-untyped-call]


class _AttachAdjoint(torch.autograd.Function):
    """A copy, whose backward replaces the gradient by what the function returns."""

    @staticmethod
    def forward(
        ctx: Any, function: Callable[[Vector], Vector], values: Vector | None, *leaves: Tensor
    ) -> tuple[Tensor, ...]:
        ctx.function = function
        return tuple(leaf.clone() for leaf in (leaves if values is None else values))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        refuse_transforms(*gradients)
        # ``once_differentiable`` would leave parts of a second derivative out in silence.
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "The gradient of a fixed point has no derivative here: do not pass create_graph=True."
            )
        return None, None, *ctx.function(gradients)


def refuse_transforms(*tensors: Tensor) -> None:
    """Refuses to run within a transform of torch.func, or on tensors that are batched by one.

    Args:
        tensors: Tensors to look at.

    Raises:
        UserError: If there is one.
        NotImplementedError: In forward mode, whose tangent a solve would not bring to convergence.
    """
    batched = any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)
    if batched or torch._C._functorch.peek_interpreter_stack() is not None:
        raise UserError(
            "A solve cannot be transformed by torch.func (grad, vjp, jacrev, vmap, ...) or is_grads_batched: use "
            "torch.autograd.grad, one call for each vector."
        )
    if forward_ad._current_level >= 0:
        raise NotImplementedError(
            "A solve has no forward-mode derivative: use torch.autograd.grad, one call for each vector."
        )
