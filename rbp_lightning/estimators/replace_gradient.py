"""Stepping in between a gradient and what it is handed on to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from rbp_lightning.pytree import State, Vector


def replace_gradient(function: Callable[[Vector], Vector], state: State) -> State:
    """Returns a state unchanged; its gradient is replaced in the backward pass, and cannot be differentiated in turn.

    Args:
        function: Takes the leaves of the gradient and returns those that are handed on in their place.
        state: The state.

    Raises:
        NotImplementedError: In the backward pass, if it is run with ``create_graph=True``.

    Example:
        >>> weight = torch.ones(2, requires_grad=True)
        >>> replace_gradient(lambda gradient: [2 * leaf for leaf in gradient], weight).sum().backward()
        >>> weight.grad
        tensor([2., 2.])
    """
    leaves, structure = tree_flatten(state)
    leaves = list(_ReplaceGradient.apply(function, *leaves))  # type: ignore[no-untyped-call]
    return tree_unflatten(leaves, structure)


class _ReplaceGradient(torch.autograd.Function):
    """The identity, whose backward hands what the function returns on in place of the gradient."""

    @staticmethod
    def forward(ctx: Any, function: Callable[[Vector], Vector], *leaves: Tensor) -> tuple[Tensor, ...]:
        ctx.function = function
        return tuple(leaf.view_as(leaf) for leaf in leaves)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        # ``once_differentiable`` would leave parts of a second derivative out in silence.
        if torch.is_grad_enabled():
            raise NotImplementedError(
                "The gradient of a fixed point has no derivative here: do not pass create_graph=True."
            )
        return None, *ctx.function(gradients)
