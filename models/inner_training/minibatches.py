"""The minibatches of the inner training."""

import torch
from torch import Tensor


class Minibatches:
    """Shuffled minibatches, optionally followed by a fixed set of examples.

    Every pass goes through all examples in a new order. The orders depend only on the seed.

    After ``minibatch_steps`` minibatches, every further step uses the same set of examples. The update is then a fixed
    map, which Jacobian products and diagnostics need.

    Args:
        num_examples: Number of training examples.
        batch_size: Examples in a minibatch; the last one of a pass may be smaller.
        seed: Seed of the orders.
        minibatch_steps: Number of steps on minibatches; ``None`` for all steps.
        linearization_size: Number of examples in the fixed set; ``None`` for all examples.
        device: Device of the indices.

    Example:
        >>> minibatches = Minibatches(4, batch_size=3, seed=0, minibatch_steps=3)
        >>> [len(minibatches.next_indices()) for _ in range(6)]
        [3, 1, 3, 4, 4, 4]
    """

    def __init__(
        self,
        num_examples: int,
        batch_size: int,
        seed: int,
        minibatch_steps: int | None = None,
        linearization_size: int | None = None,
        device: torch.device | None = None,
    ) -> None:
        self.num_examples, self.batch_size, self.device = num_examples, batch_size, device
        self.minibatch_steps, self.linearization_size = minibatch_steps, linearization_size
        self._generator = torch.Generator().manual_seed(seed)
        self._steps = 0
        self._remaining = torch.empty(0, dtype=torch.int64, device=device)
        self._fixed: Tensor | None = None

    def next_indices(self) -> Tensor:
        """Returns the indices of the next step's examples, int64."""
        if self.minibatch_steps is not None and self._steps >= self.minibatch_steps:
            if self._fixed is None:
                self._fixed = self._shuffled()[: self.linearization_size]
            return self._fixed
        self._steps += 1
        if len(self._remaining) == 0:
            self._remaining = self._shuffled()
        indices, self._remaining = self._remaining[: self.batch_size], self._remaining[self.batch_size :]
        return indices

    def _shuffled(self) -> Tensor:
        # On the CPU, so that the order is the same on every device and in every process.
        return torch.randperm(self.num_examples, generator=self._generator).to(self.device)
