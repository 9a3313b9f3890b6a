"""States as lists of tensors, and the inner products that solvers and estimators share.

A state is a tensor or any pytree of floating-point tensors. Its first ``batch_dims`` dimensions, the same in every
leaf, index samples that do not act on each other; norms and inner products are taken over all the others.
"""

from collections.abc import Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from rbp_lightning.errors import UserError

State: TypeAlias = Any
"""A tensor, or any pytree (dict, tuple, list, ...) of floating-point tensors."""

Vector: TypeAlias = Sequence[Tensor]
"""The leaves of a state, in pytree order."""

FLOAT32_SUM = 2**18
"""How many squares are summed in float32 at most: rounding adds up to some 2e-4 of the norm by then."""


def leaves_of(state: State, batch_dims: int) -> list[Tensor]:
    """Returns the leaves of a state after checking that it can be iterated on.

    Args:
        state: The state to check.
        batch_dims: The number of leading dimensions that index independent samples.

    Returns:
        The tensors of the state, in pytree order.

    Raises:
        UserError: If a leaf is not a floating-point tensor, there is none, or the leaves do not share their first
            ``batch_dims`` dimensions.
    """
    leaves = tree_flatten(state)[0]
    if not any(isinstance(leaf, Tensor) and leaf.numel() for leaf in leaves):
        raise UserError(
            "The initial state has no elements: it must be a tensor, or a pytree of tensors, that has some."
        )
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.is_floating_point():
            kind = leaf.dtype if isinstance(leaf, Tensor) else type(leaf).__name__
            raise UserError(f"The initial state has a leaf of type {kind}: every leaf must be a floating-point tensor.")
        if leaf.dim() < batch_dims or leaf.shape[:batch_dims] != leaves[0].shape[:batch_dims]:
            raise UserError(
                f"batch_dims={batch_dims}, but the leaves of the initial state have the shapes "
                f"{[tuple(other.shape) for other in leaves]}: the first {batch_dims} dimensions must be the same in "
                "all of them."
            )
    return leaves


def widened(vector: Vector) -> list[Tensor]:
    """Returns the leaves in float32, or as they are where they are wider."""
    return [leaf.to(torch.promote_types(leaf.dtype, torch.float32)) for leaf in vector]


def in_dtypes_of(like: Vector, vector: Vector) -> list[Tensor]:
    """Returns the leaves of ``vector``, each in the dtype of its counterpart in ``like``."""
    pairs = zip(vector, like, strict=True)
    return [leaf if leaf.dtype == other.dtype else leaf.to(other.dtype) for leaf, other in pairs]


def inner(left: Vector, right: Vector, batch_dims: int) -> Tensor:
    """Inner product of two states, one for each sample.

    Low-precision leaves are summed in float32.

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
    total = torch.zeros((), device=left[0].device)
    for one, other in zip(widened(left), widened(right), strict=True):
        shape = (*one.shape[:batch_dims], -1)
        total = total + torch.linalg.vecdot(one.reshape(shape), other.reshape(shape))
    return total


def norm(vector: Vector, batch_dims: int) -> Tensor:
    """Euclidean norm of a state, one for each sample.

    Args:
        vector: Leaves of the state.
        batch_dims: The number of leading dimensions that index independent samples.

    Returns:
        The norms, of the shape of the first ``batch_dims`` dimensions.
    """
    dtype = torch.float32
    norms = []
    for leaf in vector:
        dtype = torch.promote_types(dtype, leaf.dtype)
        # Squares of float32 overflow from 1e19 and vanish from 1e-19 on; MPS has no float64.
        wide = torch.float64 if leaf.device.type != "mps" else torch.float32
        flat = leaf.reshape((*leaf.shape[:batch_dims], -1))
        # The CPU copies what it sums in another dtype: of a large leaf a part at a time.
        parts = flat.chunk(4, dim=-1) if leaf.dtype != wide and leaf.is_cpu and leaf.numel() >= 2**14 else (flat,)
        norms += [torch.linalg.vector_norm(part, dim=-1, dtype=wide) for part in parts]
    total: Tensor = norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms), dim=0)
    return total.to(dtype)


def approximate_norms(vectors: Sequence[Vector], batch_dims: int) -> tuple[list[Tensor], bool]:
    """What ``norm`` returns for some states, but to some 2e-4 of it: enough to judge a residual by.

    On the CPU a large leaf in float32 takes a fourth of the time.

    Args:
        vectors: Leaves of each state.
        batch_dims: The number of leading dimensions that index independent samples.

    Returns:
        The norms of each state, and whether all are known to be finite and far from zero.
    """
    found = [_float32_norm(vector, batch_dims) for vector in vectors]
    norms = [norm(vector, batch_dims) if one is None else one for vector, one in zip(vectors, found, strict=True)]
    return norms, all(one is not None for one in found)


def approximate_norm(vector: Vector, batch_dims: int) -> Tensor:
    """What ``approximate_norms`` returns for one state.

    Args:
        vector: Leaves of the state.
        batch_dims: The number of leading dimensions that index independent samples.
    """
    return approximate_norms([vector], batch_dims)[0][0]


def _float32_norm(vector: Vector, batch_dims: int) -> Tensor | None:
    """The norms of a state with squares summed in float32, or ``None`` where that is not safe or not quicker."""
    leaf = vector[0]
    if len(vector) > 1 or leaf.dtype != torch.float32 or not leaf.is_cpu or leaf.numel() == 0:
        return None
    # No dimensions would be all of them; strided leaves lose more digits.
    if leaf.shape[batch_dims:].numel() > FLOAT32_SUM or 0 < batch_dims == leaf.dim():
        return None
    dims = tuple(range(batch_dims, leaf.dim())) if batch_dims else None
    found: Tensor = torch.linalg.vector_norm(leaf.contiguous(), dim=dims)
    ends: list[Any] = [end.tolist() for end in (found.aminmax() if batch_dims else (found,))]
    # No square has overflown, and none that counts has vanished; false for NaN.
    return found if all(1e-12 < end < 1e18 for end in ends) else None


def share(part: Tensor, whole: Tensor) -> Tensor:
    """Quotient of two norms of each sample; ``part`` itself where the whole is 0."""
    return torch.where(whole == 0, part, part / whole)


def scaled(scale: Tensor, vector: Vector) -> list[Tensor]:
    """Multiplies each sample of a state by its own factor.

    Args:
        scale: Factors, of the shape of the batch dimensions.
        vector: Leaves of the state.

    Returns:
        The products, each of its leaf's shape and dtype.
    """
    return [scale.reshape(scale.shape + (1,) * (leaf.dim() - scale.dim())).to(leaf.dtype) * leaf for leaf in vector]


def divisor(vector: Vector, batch_dims: int) -> Tensor:
    """What to divide each sample of a state by to give it norm 1, to some 2e-4; for one that is 0 it is 1.

    Its inverse is finite.

    Args:
        vector: Leaves of the state.
        batch_dims: The number of leading dimensions that index independent samples.
    """
    (size,), ordinary = approximate_norms([vector], batch_dims)
    return size if ordinary else torch.where(size > 0, size.clamp_min(torch.finfo(size.dtype).tiny), 1)


def where(condition: Tensor, chosen: Vector, other: Vector) -> list[Tensor]:
    """Chooses one of two states, sample by sample.

    Args:
        condition: Bool, of the shape of the batch dimensions.
        chosen: Leaves of the state taken where it holds.
        other: Leaves of the one taken elsewhere.
    """
    return [
        torch.where(condition.reshape(condition.shape + (1,) * (one.dim() - condition.dim())), one, two)
        for one, two in zip(chosen, other, strict=True)
    ]


def plus(left: Vector, right: Vector) -> list[Tensor]:
    """Sum of two states, leaf by leaf."""
    return [one + other for one, other in zip(left, right, strict=True)]


def minus(left: Vector, right: Vector) -> list[Tensor]:
    """Difference of two states, leaf by leaf."""
    return [one - other for one, other in zip(left, right, strict=True)]
