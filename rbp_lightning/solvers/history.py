"""Vectors of past steps, in one block of memory."""

import torch
from torch import Tensor


class History:
    """Some vectors per sample, changed in place.

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
        self._slots = self._block.unbind(-2)

    def first(self, count: int) -> Tensor:
        """The first ones, ``[*batch, count, n]``."""
        return self._block[..., :count, :]

    def put(self, slot: int, value: Tensor) -> None:
        """Replaces one.

        Args:
            slot: Which one.
            value: The new one.
        """
        self._slots[slot].copy_(value)

    def put_difference(self, slot: int, left: Tensor, right: Tensor) -> None:
        """Replaces one by a difference.

        Args:
            slot: Which one.
            left: What to subtract from.
            right: What to subtract.
        """
        torch.sub(left, right, out=self._slots[slot])
