"""Raises an error for derivatives of a higher order than the solve supports."""

from typing import Any

import torch
from torch import Tensor

from rbp_lightning.estimators.transforms import in_forward_mode
from rbp_lightning.pytree import Vector


def limit_order(order: int, vector: Vector) -> list[Tensor]:
    """Returns zeros that can be differentiated up to an order; the next derivative raises an error.

    Added to a result, they prevent a silently wrong derivative. Each of their derivatives is again such zeros, which
    depend on the tensors, so that the next derivative is computed too.

    Args:
        order: The highest order of derivatives.
        vector: The tensors on which the result depends.

    Raises:
        NotImplementedError: When a derivative of a higher order is computed.

    Example:
        >>> x = torch.tensor(3.0, requires_grad=True)
        >>> result = x + limit_order(1, [x])[0]
        >>> slope = torch.autograd.grad(result, x, create_graph=True)[0]
        >>> torch.autograd.grad(slope, x)
        Traceback (most recent call last):
        NotImplementedError: The gradient of a fixed point has no derivative of order 2 here: pass order=2 to ...
    """
    return list(_Zeros.apply(order, order, *vector))  # type: ignore[no-untyped-call]


def refuse_order(order: int) -> None:
    """Raises the error for a derivative of a higher order, with the remedy.

    In forward mode PyTorch computes the tangent of each gradient, a derivative of one order more, even if it is unused.

    Args:
        order: The highest supported order.

    Raises:
        NotImplementedError: Always.
    """
    remedy = "do not pass create_graph=True"
    if in_forward_mode():
        remedy = "compute the gradient outside of forward_ad.dual_level, in which it has a tangent of one order more"
    raise NotImplementedError(
        f"The gradient of a fixed point has no derivative of order {order + 1} here: pass order={order + 1} to the "
        f"estimator or the layer where it solves, or {remedy}."
    )


class _Zeros(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(order: int, left: int, *leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(leaf) for leaf in leaves)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.order, ctx.left, *leaves = inputs
        ctx.save_for_backward(*leaves)
        ctx.save_for_forward(*leaves)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, *_derivative(ctx)

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> tuple[Tensor, ...]:
        return _derivative(ctx)


def _derivative(ctx: Any) -> tuple[Tensor, ...]:
    if ctx.left == 0:
        refuse_order(ctx.order)
    zeros: tuple[Tensor, ...] = _Zeros.apply(ctx.order, ctx.left - 1, *ctx.saved_tensors)  # type: ignore[no-untyped-call]
    return zeros
