"""Derivatives of a fixed point of any order, in reverse and forward mode."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch._C._functorch import get_interpreter_stack
from torch.autograd import forward_ad

from rbp_lightning.estimators.derivative_limit import limit_order
from rbp_lightning.estimators.transforms import for_each_in_batch
from rbp_lightning.pytree import Vector, add, subtract

LinearMap: TypeAlias = Callable[[Vector], Vector]


@dataclass(frozen=True)
class Inverse:
    """The inverse (I - J)^-1 at a fixed point, a constant.

    Attributes:
        apply: Multiplies by the inverse.
        apply_transposed: Multiplies by its transpose.
        vmap_levels: Levels of the vmaps around the solve, whose dimensions are batch dimensions of the solve.
    """

    apply: LinearMap
    apply_transposed: LinearMap
    vmap_levels: Sequence[int] = ()


def chord_steps(function: Callable[[Vector], Vector], vector: Vector, inverse: Inverse, order: int) -> list[Tensor]:
    """Attaches the derivatives of a fixed point up to a given order.

    It takes ``order`` chord steps, h <- h + (I - J)^-1 (F(h) - h) with a constant J, from the detached fixed point.
    Each step makes the derivatives of one more order correct, like a step of Newton's method with the Jacobian of the
    first iterate (Ortega and Rheinboldt, Iterative Solution of Nonlinear Equations, 1970, section 7.1). The values do
    not change; linear solves are only needed for derivatives.

    Args:
        function: F on leaves.
        vector: Leaves of the fixed point.
        inverse: (I - J)^-1 at the fixed point.
        order: The highest order of derivatives; computing a higher one raises an error.

    Returns:
        Differentiable leaves of the fixed point.

    Example:
        >>> weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        >>> def double(vector):  # 1 / (1 - weight)
        ...     return [2 * leaf for leaf in vector]
        >>> fixed_point = [torch.tensor(2.0, dtype=torch.float64)]
        >>> state = chord_steps(lambda h: [weight * h[0] + 1], fixed_point, Inverse(double, double), order=2)[0]
        >>> slope = torch.autograd.grad(state, weight, create_graph=True)[0]
        >>> slope.detach(), torch.autograd.grad(slope, weight)[0]  # 1 / (1 - weight)^2 and 2 / (1 - weight)^3
        (tensor(4., dtype=torch.float64), tensor(16., dtype=torch.float64))
    """
    for _ in range(order):
        residual = subtract(function(vector), vector)
        vector = add(vector, _Correction.apply(inverse, 0, *residual))  # type: ignore[no-untyped-call]
    return add(vector, limit_order(order, residual))


class _Correction(torch.autograd.Function):
    """The change of a chord step, (I - J)^-1 (F(h) - h), which is 0 at a fixed point, but has a derivative.

    ``lowered`` counts the vmaps around the solve that were already handled, the innermost first; their dimensions are
    the first dimensions of the tensors.
    """

    @staticmethod
    def forward(inverse: Inverse, lowered: int, *residual: Tensor) -> tuple[Tensor, ...]:
        return tuple(torch.zeros_like(leaf) for leaf in residual)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.inverse, ctx.lowered, *residual = inputs
        ctx.save_for_backward(*residual)
        ctx.save_for_forward(*residual)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, *_multiply(ctx.inverse, True, ctx.lowered, ctx.saved_tensors, gradients)

    @staticmethod
    def jvp(ctx: Any, inverse: None, lowered: None, *tangents: Tensor) -> tuple[Tensor, ...]:
        return _multiply(ctx.inverse, False, ctx.lowered, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], inverse: Inverse, lowered: int, *residual: Tensor) -> Any:
        whole = _batched(info, in_dims[2:], residual)
        return _Correction.apply(inverse, lowered + 1, *whole), (0,) * len(whole)  # type: ignore[no-untyped-call]


class _Multiply(torch.autograd.Function):
    """The product with (I - J)^-1, or with its transpose; each is the backward of the other."""

    @staticmethod
    def forward(inverse: Inverse, transposed: bool, lowered: int, *vector: Tensor) -> tuple[Tensor, ...]:
        product = inverse.apply_transposed(vector) if transposed else inverse.apply(vector)
        return tuple(leaf.to(other.dtype) for leaf, other in zip(product, vector, strict=True))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.inverse, ctx.transposed, ctx.lowered, *vector = inputs
        ctx.save_for_backward(*vector)
        ctx.save_for_forward(*vector)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        return None, None, None, *_multiply(ctx.inverse, not ctx.transposed, ctx.lowered, ctx.saved_tensors, gradients)

    @staticmethod
    def jvp(ctx: Any, inverse: None, transposed: None, lowered: None, *tangents: Tensor) -> tuple[Tensor, ...]:
        return _multiply(ctx.inverse, ctx.transposed, ctx.lowered, ctx.saved_tensors, tangents)

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], inverse: Inverse, transposed: bool, lowered: int, *vector: Tensor
    ) -> Any:
        whole = _batched(info, in_dims[3:], vector)
        dims = (0,) * len(whole)
        own = inverse.vmap_levels[: len(inverse.vmap_levels) - lowered]
        # A vmap that was entered after the solve has a higher level than the remaining ones of the solve.
        if own and own[-1] == _level_of_vmap():
            return _Multiply.apply(inverse, transposed, lowered + 1, *whole), dims  # type: ignore[no-untyped-call]
        products = [
            _Multiply.apply(inverse, transposed, lowered, *entry)  # type: ignore[no-untyped-call]
            for entry in zip(*whole, strict=True)
        ]
        return tuple(torch.stack(leaves) for leaves in zip(*products, strict=True)), dims


def _multiply(
    inverse: Inverse, transposed: bool, lowered: int, like: Sequence[Tensor], vector: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    # A gradient that does not depend on the vmapped inputs must still get the operator's batch dimensions.
    if inverse.vmap_levels:
        with forward_ad._set_fwd_grad_enabled(True):  # disabled within a jvp, but tangents may have tangents
            vector = add(vector, [torch.zeros_like(leaf) for leaf in like])

    def multiply(*leaves: Tensor) -> tuple[Tensor, ...]:
        product: tuple[Tensor, ...] = _Multiply.apply(inverse, transposed, lowered, *leaves)  # type: ignore[no-untyped-call]
        return product

    return tuple(for_each_in_batch(multiply, vector))


def _batched(info: Any, in_dims: Sequence[int | None], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Tensors with the vmapped dimension moved to the front."""
    pairs = zip(tensors, in_dims, strict=True)
    return [leaf.expand(info.batch_size, *leaf.shape) if dim is None else leaf.movedim(dim, 0) for leaf, dim in pairs]


def _level_of_vmap() -> int:
    """The level of the vmap whose rule is running: one above the levels 1, 2, ... that are on the stack."""
    return len(get_interpreter_stack() or ()) + 1
