"""Which training examples each step of the inner training uses."""

import torch
from torch import Tensor


class Minibatches:
    """Shuffled minibatches, and optionally a fixed set of examples after them.

    Every pass goes through all examples in a new order. The orders depend on the seed alone.

    After ``minibatch_steps`` minibatches every further step uses one fixed set of examples. From there on the update
    is the same map however often it is applied, as Jacobian products and diagnostics need.

    Args:
        num_examples: Number of training examples.
        batch_size: Examples in a minibatch. The last one of a pass may be smaller.
        seed: Seed of the orders.
        minibatch_steps: Number of steps on minibatches; ``None`` means all of them.
        linearization_size: Number of examples in the fixed set; ``None`` means all examples.
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
        self._left = torch.empty(0, dtype=torch.int64, device=device)
        self._fixed: Tensor | None = None

    def next_indices(self) -> Tensor:
        """Returns the indices of the next step's examples, int64."""
        if self.minibatch_steps is not None and self._steps >= self.minibatch_steps:
            if self._fixed is None:
                self._fixed = self._shuffled()[: self.linearization_size]
            return self._fixed
        self._steps += 1
        if len(self._left) == 0:
            self._left = self._shuffled()
        indices, self._left = self._left[: self.batch_size], self._left[self.batch_size :]
        return indices

    def _shuffled(self) -> Tensor:
        # Drawn on the CPU, so that the order is the same on every device and in every process.
        return torch.randperm(self.num_examples, generator=self._generator).to(self.device)
