"""Flattens states into leaves, and does arithmetic with them.

A state is a tensor or any pytree of floating-point tensors. Its first ``batch_dims`` dimensions, the same in every
leaf, index independent samples; norms and inner products are taken over the remaining dimensions.
"""

import math
from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_flatten

from rbp_lightning.errors import UserError

State: TypeAlias = Any
"""A tensor, or any pytree (dict, tuple, list, ...) of floating-point tensors."""

Vector: TypeAlias = Sequence[Tensor]
"""The leaves of a state, in the order of the initial state's structure."""


FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))
"""The dtypes of a state."""

SAFE_RANGE = 1e-2, 1e2
"""Range of the largest entry of a state in which squares, also of small residuals, stay within the range of float32,
and the terms of a long series do not soon become denormal, which is slow on a CPU."""

EXPONENTS = {torch.float32: (torch.int32, 0x7F800000), torch.float64: (torch.int64, 0x7FF0000000000000)}
"""An integer type of the same size, and the bits of the exponent: of these alone a number is a power of two."""


def flatten_state(state: State, batch_dims: int) -> tuple[list[Tensor], TreeSpec]:
    """Checks an initial state and flattens it.

    Args:
        state: The state.
        batch_dims: The number of leading dimensions that index independent samples.

    Returns:
        The leaves of the state and its structure.

    Raises:
        UserError: If there are no leaves, a leaf is not a dense floating-point tensor, or the leaves differ in their
            device or first ``batch_dims`` dimensions.
    """
    try:
        leaves, structure = tree_flatten(state)
    except RecursionError as error:
        raise UserError("The initial state contains itself: pass a finite pytree of tensors.") from error
    if not any(isinstance(leaf, Tensor) and leaf.numel() for leaf in leaves):
        raise UserError("The initial state has no elements: pass a tensor, or a pytree of tensors, with some elements.")
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or leaf.dtype not in FLOATS or leaf.layout is not torch.strided:
            kind = f"{leaf.dtype}, {leaf.layout}" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise UserError(
                f"The initial state has a leaf of type {kind}: every leaf must be a dense floating-point tensor."
            )
        if leaf.is_meta or leaf.device != leaves[0].device:
            devices = sorted({str(other.device) for other in leaves if isinstance(other, Tensor)})
            raise UserError(
                f"The leaves of the initial state are on {', '.join(devices)}: they must be on one device, and not on "
                "the meta device, where tensors have no values."
            )
        if leaf.dim() < batch_dims or leaf.shape[:batch_dims] != leaves[0].shape[:batch_dims]:
            shapes = [tuple(getattr(other, "shape", ())) for other in leaves]
            raise UserError(
                f"batch_dims={batch_dims}, but the leaves of the initial state have the shapes {shapes}: the first "
                f"{batch_dims} dimensions must be the same in all of them."
            )
    if torch.compiler.is_compiling() or torch.is_inference_mode_enabled():
        return leaves, structure
    # Autograd cannot save tensors that were created in inference mode.
    return [leaf.clone() if leaf.is_inference() else leaf for leaf in leaves], structure


def to_float32(vector: Vector) -> list[Tensor]:
    """Casts leaves in half precision to float32."""
    return [leaf.float() if leaf.dtype in (torch.float16, torch.bfloat16) else leaf for leaf in vector]


def inner(left: Vector, right: Vector, batch_dims: int) -> Tensor:
    """Inner product of two states, per sample, summed in float32 at least.

    Args:
        left: Leaves of one state.
        right: Leaves of the other.
        batch_dims: The number of leading dimensions that index independent samples.

    Returns:
        The inner products, of the shape of the first ``batch_dims`` dimensions (a scalar tensor for 0).

    Example:
        >>> inner([torch.ones(2, 3)], [torch.full((2, 3), 2.0)], batch_dims=1)
        tensor([6., 6.])
    """
    total: Tensor | None = None
    for one, other in zip(to_float32(left), to_float32(right), strict=True):
        shape = (*one.shape[:batch_dims], -1)
        product = torch.linalg.vecdot(one.reshape(shape), other.reshape(shape))
        total = product if total is None else total + product
    assert total is not None  # a state has a leaf
    return total


def norm(vector: Vector, batch_dims: int) -> Tensor:
    """Euclidean norm of a state, per sample, summed in float32 at least.

    It is infinite where the squares overflow, beyond 1e19 in float32.

    Args:
        vector: Leaves of the state.
        batch_dims: The number of leading dimensions that index independent samples.

    Returns:
        The norms, of the shape of the first ``batch_dims`` dimensions.

    Example:
        >>> norm([torch.tensor([[3.0], [0.0]]), torch.tensor([4.0, 1.0])], batch_dims=1)
        tensor([5., 1.])
    """
    if len(vector) == 1:
        return _leaf_norm(vector[0], batch_dims)
    total: Tensor = torch.linalg.vector_norm(leaf_norms(vector, batch_dims), dim=0)
    return total


def leaf_norms(vector: Vector, batch_dims: int) -> Tensor:
    """Euclidean norm of each leaf, per sample, of shape ``[num_leaves, *batch]``."""
    return torch.stack([_leaf_norm(leaf, batch_dims) for leaf in vector])


def norms_of(vectors: Sequence[Vector], batch_dims: int) -> list[Tensor]:
    """The norms of several states, per sample."""
    return [norm(vector, batch_dims) for vector in vectors]


def _leaf_norm(leaf: Tensor, batch_dims: int) -> Tensor:
    dtype = torch.float32 if leaf.dtype in (torch.float16, torch.bfloat16) else None
    if batch_dims == 0:
        whole: Tensor = torch.linalg.vector_norm(leaf, dtype=dtype)
        return whole
    dims = tuple(range(batch_dims, leaf.dim()))
    per_sample: Tensor = torch.linalg.vector_norm(leaf, dim=dims, dtype=dtype) if dims else leaf.abs().to(dtype)
    return per_sample


def change_and_size(vector: Vector, image: Vector, batch_dims: int) -> tuple[Tensor, Tensor]:
    """Norms of ``image - vector`` and of ``image``, per sample.

    Args:
        vector: Leaves of one state.
        image: Leaves of the next one.
        batch_dims: The number of leading dimensions that index independent samples.
    """
    return norm(subtract(image, vector), batch_dims), norm(image, batch_dims)


def normalize(vector: Vector, always: bool = False) -> tuple[list[Tensor], Tensor | None]:
    """Scales a state so that its largest absolute entry is in [1, 2), if squares could leave float32's range.

    On a GPU the state is always divided, because reading the largest entry would synchronise with the device. The
    divisor is a power of two, so that the division is exact and a linear solve takes the same path with and without it.

    Args:
        vector: Leaves of the state.
        always: Whether to divide in any case, as low precision requires.

    Returns:
        The quotient in float32 at least, and the divisor, a scalar tensor; or the state and ``None`` if it was not
        divided.
    """
    wide = to_float32(vector)
    ends = [end for leaf in wide if leaf.numel() for end in leaf.aminmax()]
    if not always and wide[0].device.type == "cpu":
        least, most = SAFE_RANGE
        if least <= max(abs(float(end)) for end in ends) <= most:  # may miss NaN, which is fine
            return wide, None
    both = torch.stack(ends)
    integer, exponent = EXPONENTS[both.dtype]
    size = both.view(integer).bitwise_and(exponent).view(both.dtype).max()
    # With NaN or infinities, of which infinity is left, nothing is scaled.
    size = size.nan_to_num(posinf=1.0).clamp_min(max(torch.finfo(leaf.dtype).tiny for leaf in wide))
    return [leaf / size for leaf in wide], size


def denormalize(vector: Vector, size: Tensor, like: Vector) -> list[Tensor]:
    """Multiplies by the divisor of ``normalize``, and casts to the dtypes of ``like``."""
    return [(size * leaf).to(other.dtype) for leaf, other in zip(vector, like, strict=True)]


def ravel(vector: Vector, batch_dims: int) -> Tensor:
    """Joins the leaves of a state into one vector per sample, in float32 at least.

    Args:
        vector: Leaves of the state.
        batch_dims: The number of leading dimensions that index independent samples.

    Returns:
        The vectors, ``[*batch, size]``; a view if there is one leaf.
    """
    wide = to_float32(vector)
    if len(wide) == 1 and wide[0].dim() == batch_dims + 1:
        return wide[0]
    flat = [leaf.reshape(*leaf.shape[:batch_dims], -1) for leaf in wide]
    return flat[0] if len(flat) == 1 else torch.cat(flat, dim=-1)


def unravel(flat: Tensor, like: Vector) -> list[Tensor]:
    """Splits vectors into leaves, the inverse of ``ravel``.

    Args:
        flat: The vectors, ``[*batch, size]``.
        like: Leaves with the shapes and dtypes of the result.
    """
    sizes = [math.prod(leaf.shape[flat.dim() - 1 :]) for leaf in like]
    pieces = torch.split(flat, sizes, dim=-1) if len(like) > 1 else [flat]
    return [piece.reshape(leaf.shape).to(leaf.dtype) for piece, leaf in zip(pieces, like, strict=True)]


def divide(part: Tensor, whole: Tensor) -> Tensor:
    """Quotient of two norms, per sample; ``part`` itself where ``whole`` is 0."""
    return torch.where(whole == 0, part, part / whole)


def scale(factor: Tensor, vector: Vector) -> list[Tensor]:
    """Multiplies each sample of a state by its own factor.

    Args:
        factor: Factors, of the shape of the batch dimensions, or one for all samples.
        vector: Leaves of the state.

    Returns:
        The products, with the shapes and dtypes of the leaves.
    """
    return [_align(factor, leaf).to(leaf.dtype) * leaf for leaf in vector]


def where(condition: Tensor, chosen: Vector, other: Vector) -> list[Tensor]:
    """Chooses between two states, sample by sample.

    Args:
        condition: Bool, of the shape of the batch dimensions.
        chosen: Leaves of the state where ``condition`` holds.
        other: Leaves of the state elsewhere.
    """
    return [torch.where(_align(condition, one), one, two) for one, two in zip(chosen, other, strict=True)]


def add(left: Vector, right: Vector) -> list[Tensor]:
    """Sum of two states, leaf by leaf."""
    return [one + other for one, other in zip(left, right, strict=True)]


def subtract(left: Vector, right: Vector) -> list[Tensor]:
    """Difference of two states, leaf by leaf."""
    return [one - other for one, other in zip(left, right, strict=True)]


def _align(per_sample: Tensor, leaf: Tensor) -> Tensor:
    """Appends dimensions of size 1, so that per-sample values broadcast over a leaf."""
    return per_sample.reshape(per_sample.shape + (1,) * (leaf.dim() - per_sample.dim()))
