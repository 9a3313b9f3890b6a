"""Stores vectors of past steps in one block of memory."""

import torch
from torch import Tensor

from rbp_lightning.tracing import is_traced


class History:
    """A fixed number of vectors per sample.

    Args:
        like: A vector of their shape and dtype, ``[*batch, n]``.
        length: Number of vectors.

    Example:
        >>> history = History(torch.ones(2), length=3)
        >>> history.put(1, torch.tensor([3.0, 4.0]))
        >>> history.first(2)
        tensor([[0., 0.],
                [3., 4.]])
    """

    def __init__(self, like: Tensor, length: int) -> None:
        self._block = like.new_zeros(*like.shape[:-1], length, like.shape[-1])
        self._slots = () if is_traced() else self._block.unbind(-2)  # no in-place changes in a traced graph

    def first(self, count: int) -> Tensor:
        """The first ``count`` vectors, ``[*batch, count, n]``."""
        return self._block[..., :count, :]

    def put(self, slot: int, value: Tensor) -> None:
        """Replaces a vector.

        Args:
            slot: Its index.
            value: The new vector.
        """
        if self._slots:
            self._slots[slot].copy_(value)
        else:
            self._block = torch.select_scatter(self._block, value, -2, slot)

    def put_difference(self, slot: int, left: Tensor, right: Tensor) -> None:
        """Replaces a vector by ``left - right``.

        Args:
            slot: Its index.
            left: The minuend.
            right: The subtrahend.
        """
        if self._slots:
            torch.sub(left, right, out=self._slots[slot])
        else:
            self.put(slot, left - right)
