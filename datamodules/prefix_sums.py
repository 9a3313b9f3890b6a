"""Strings of bits and their running parities."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.puzzles import Puzzles, check_sizes
from rbp_lightning.errors import UserError, check_count, check_entries

LONGEST = 10**5
"""Most bits of a string."""

DIFFERENT = 62
"""How many bits, from the first, are enough to tell the strings of a split apart."""


class PrefixSums(Puzzles):
    """Random strings of bits, and the parity of all bits up to each (Schwarzschild et al., NeurIPS 2021).

    The longer a string, the more steps a network needs whose cells see their neighbours alone. ``inputs`` are -1.0 and
    1.0, of shape ``[batch, 1, length]``; ``targets`` are 0 and 1, of shape ``[batch, length]``; ``size`` is the length.
    No string occurs twice.

    Args:
        length: Bits of a string in training.
        val_lengths: Lengths in validation; ``None`` stands for that of training and four times as many.
        test_lengths: Lengths in test and prediction; ``None`` stands for that of training, 4 and 32 times as many.
        num_train: How many strings to train on.
        num_val: How many of each length are in validation.
        num_test: How many of each length are in test.
        batch_size: Strings in a batch of one process.
        data_seed: Seed of all strings and of their order in training.

    Raises:
        UserError: If an argument is out of its range, or there are not so many strings of a length.

    Example:
        >>> data = PrefixSums(length=4, num_train=5, num_val=1, num_test=1)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> torch.equal(batch["targets"], (batch["inputs"][:, 0] > 0).cumsum(1) % 2)
        True
    """

    def __init__(
        self,
        length: int = 16,
        val_lengths: Sequence[int] | None = None,
        test_lengths: Sequence[int] | None = None,
        num_train: int = 20000,
        num_val: int = 64,
        num_test: int = 64,
        batch_size: int = 128,
        data_seed: int = 0,
    ) -> None:
        check_count(self, "length", length, 1, LONGEST)
        val = [length, 4 * length] if val_lengths is None else val_lengths
        test = [length, 4 * length, 32 * length] if test_lengths is None else test_lengths
        check_sizes(self, "val_lengths", val, 1, LONGEST)
        check_sizes(self, "test_lengths", test, 1, LONGEST)
        super().__init__([length], val, test, num_train, num_val, num_test, batch_size, data_seed)
        self.save_hyperparameters()

    def draw(self, size: int, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws strings, none of them twice."""
        told_apart = min(size, DIFFERENT)
        if count > 2**told_apart:
            raise UserError(
                f"PrefixSums: there are {2**size} strings of {size} bits, but num_train, num_val and num_test ask for "
                f"{count} of them: lower these, or make the strings longer."
            )
        check_entries(self, size * count, lengths=size, count=count)
        numbers = generator.choice(2**told_apart, count, replace=False)
        bits = generator.integers(2, size=(count, size), dtype=np.int64)
        bits[:, :told_apart] = numbers[:, None] >> np.arange(told_apart) & 1
        inputs = torch.from_numpy(2 * bits - 1).float()[:, None]
        return inputs, torch.from_numpy(bits.cumsum(1) % 2)
