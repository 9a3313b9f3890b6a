"""Vectors of past steps, in one block of memory."""

import torch
from torch import Tensor

from rbp_lightning.tracing import is_traced


class History:
    """Some vectors per sample.

    Args:
        like: One of them, ``[*batch, n]``.
        length: Their number.

    Example:
        >>> history = History(torch.ones(2), length=3)
        >>> history.put(1, torch.tensor([3.0, 4.0]))
        >>> history.first(2)
        tensor([[0., 0.],
                [3., 4.]])
    """

    def __init__(self, like: Tensor, length: int) -> None:
        self._block = like.new_zeros(*like.shape[:-1], length, like.shape[-1])
        self._slots = () if is_traced() else self._block.unbind(-2)  # in a graph nothing is changed in place

    def first(self, count: int) -> Tensor:
        """The first ones, ``[*batch, count, n]``."""
        return self._block[..., :count, :]

    def put(self, slot: int, value: Tensor) -> None:
        """Replaces one.

        Args:
            slot: Which one.
            value: The new one.
        """
        if self._slots:
            self._slots[slot].copy_(value)
        else:
            self._block = torch.select_scatter(self._block, value, -2, slot)

    def put_difference(self, slot: int, left: Tensor, right: Tensor) -> None:
        """Replaces one by a difference.

        Args:
            slot: Which one.
            left: What to subtract from.
            right: What to subtract.
        """
        if self._slots:
            torch.sub(left, right, out=self._slots[slot])
        else:
            self.put(slot, left - right)
