"""The Jacobian as an operator on plain vectors."""

import functools
from collections.abc import Callable

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten

from rbp_lightning.linalg import Linearization
from rbp_lightning.pytree import State, Vector, widened


class FlatJacobian:
    """Products with J and J^T on states whose leaves are joined into one vector for each sample.

    Args:
        linearization: Products with J and J^T.
        state: A state of the structure and the shapes that it acts on.

    Example:
        >>> state = {"a": torch.ones(3, 2), "b": torch.ones(3)}
        >>> jacobian = FlatJacobian(Linearization.at(lambda h: {"a": 2 * h["a"], "b": h["b"]}, state, 1), state)
        >>> jacobian.vjp(torch.ones(3, 3))[0]
        tensor([2., 2., 1.])
    """

    def __init__(self, linearization: Linearization, state: State) -> None:
        self.linearization = linearization
        self.leaves = widened([leaf.detach() for leaf in tree_flatten(state)[0]])
        self.batch = self.leaves[0].shape[: linearization.batch_dims]
        self._parts = [leaf.shape[linearization.batch_dims :] for leaf in self.leaves]
        self.size = sum(part.numel() for part in self._parts)
        self._jvp: Callable[[Vector], list[Tensor]] | None = None

    def vjp(self, vector: Tensor) -> Tensor:
        """J^T v.

        Args:
            vector: v, of shape ``[*batch, size]``.
        """
        return self.joined(self.linearization.vjp(self.split(vector)))

    def jvp(self, vector: Tensor) -> Tensor:
        """J v.

        Args:
            vector: v, of shape ``[*batch, size]``.
        """
        if self._jvp is None:
            self._jvp = self.linearization.jvp_function()
        return self.joined(self._jvp(self.split(vector)))

    def joined(self, leaves: Vector) -> Tensor:
        """Leaves as one vector for each sample, ``[*batch, size]``."""
        return torch.cat([leaf.reshape(*self.batch, -1) for leaf in leaves], dim=-1)

    def split(self, vector: Tensor) -> list[Tensor]:
        """One vector for each sample as leaves."""
        pieces = torch.split(vector, [part.numel() for part in self._parts], dim=-1)
        return [piece.reshape(self.batch + part) for piece, part in zip(pieces, self._parts, strict=True)]

    def random_unit_vector(self, seed: int) -> Tensor:
        """A vector for each sample, uniform on the sphere, the same on every device."""
        generator = torch.Generator().manual_seed(seed)
        dtype = functools.reduce(torch.promote_types, [leaf.dtype for leaf in self.leaves])
        drawn = torch.randn((*self.batch, self.size), generator=generator, dtype=dtype)
        return torch.nn.functional.normalize(drawn.to(self.leaves[0].device), dim=-1)

    def dense(self) -> Tensor:
        """J as a matrix for each sample, of shape ``[*batch, size, size]``, by ``size`` products with J^T."""
        unit = torch.zeros_like(self.random_unit_vector(0))
        rows = []
        for index in range(self.size):
            unit[..., index] = 1
            rows.append(self.vjp(unit))
            unit[..., index] = 0
        return torch.stack(rows, dim=-2)
