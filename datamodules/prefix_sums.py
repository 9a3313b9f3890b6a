"""Bit strings and their prefix sums modulo 2."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.puzzles import Puzzles, check_sizes
from rbp_lightning.errors import UserError, check_count, check_entries

MAX_LENGTH = 10**5
"""The most bits of a string."""

DISTINCT_BITS = 62
"""The strings of a split differ within this many leading bits."""


class PrefixSums(Puzzles):
    """Random bit strings, and the parity of all bits up to each position (Schwarzschild et al., NeurIPS 2021).

    A network whose cells see only their neighbours needs more steps the longer the string. ``inputs`` are -1.0 or 1.0,
    of shape ``[batch, 1, length]``; ``targets`` are 0 or 1, of shape ``[batch, length]``; ``size`` is the length. No
    string occurs twice.

    Args:
        length: Length of training strings, in bits.
        val_lengths: Lengths in validation; ``None`` for ``length`` and 4 times it.
        test_lengths: Lengths in test and prediction; ``None`` for ``length``, 4 and 32 times it.
        num_train: Number of training strings.
        num_val: Number of validation strings of each length.
        num_test: Number of test strings of each length.
        batch_size: Batch size per process.
        data_seed: Seed of all strings and of their order in training.

    Raises:
        UserError: If an argument is out of its range, or there are too few distinct strings of a length.

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
        check_count(self, "length", length, 1, MAX_LENGTH)
        val = [length, 4 * length] if val_lengths is None else val_lengths
        test = [length, 4 * length, 32 * length] if test_lengths is None else test_lengths
        check_sizes(self, "val_lengths", val, 1, MAX_LENGTH)
        check_sizes(self, "test_lengths", test, 1, MAX_LENGTH)
        super().__init__([length], val, test, num_train, num_val, num_test, batch_size, data_seed)
        self.save_hyperparameters()

    def draw(self, size: int, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws distinct strings."""
        prefix = min(size, DISTINCT_BITS)
        if count > 2**prefix:
            raise UserError(
                f"PrefixSums: there are {2**size} strings of {size} bits, but num_train, num_val and num_test ask for "
                f"{count} of them: lower these, or use longer strings."
            )
        check_entries(self, size * count, lengths=size, count=count)
        numbers = generator.choice(2**prefix, count, replace=False)
        bits = generator.integers(2, size=(count, size), dtype=np.int64)
        bits[:, :prefix] = numbers[:, None] >> np.arange(prefix) & 1
        inputs = torch.from_numpy(2 * bits - 1).float()[:, None]
        return inputs, torch.from_numpy(bits.cumsum(1) % 2)
