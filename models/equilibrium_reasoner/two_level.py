"""A cell with a fast and a slow state."""

from typing import Literal

import torch
from torch import Tensor

from models.equilibrium_reasoner.cell import ReasoningCell
from models.equilibrium_reasoner.convolutional import ConvolutionalBlock, check_dims, readout
from rbp_lightning.errors import check_count
from rbp_lightning.pytree import State
from rbp_lightning.solvers import Update


class TwoLevelCell(ReasoningCell):
    """A low-level state that takes several steps for each step of a high-level state (HRM, Wang et al., 2025).

    An update is ``low_steps`` steps l <- f(l, [h, inputs]), then h <- g(h, l); f and g are ``ConvolutionalBlock``. The
    answer is read from h. The state is a dict of both.

    Args:
        num_inputs: Number of input channels.
        num_classes: Number of classes of a position.
        num_hidden: Number of hidden channels of each state.
        dims: 1 for sequences, 2 for grids.
        low_steps: Number of low-level steps per update, at least 1.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> cell = TwoLevelCell(num_inputs=1, num_classes=2, num_hidden=8)
        >>> update, state = cell.start(torch.ones(4, 1, 16))
        >>> cell.scores(update(state)).shape
        torch.Size([4, 2, 16])
    """

    def __init__(
        self,
        num_inputs: int,
        num_classes: int,
        num_hidden: int = 32,
        dims: Literal[1, 2] = 1,
        low_steps: int = 2,
    ) -> None:
        super().__init__(num_inputs, num_classes, num_hidden)
        self.dims = check_dims(self, dims)
        self.low_steps = check_count(self, "low_steps", low_steps, 1)
        self.low = ConvolutionalBlock(dims, num_hidden, num_hidden + num_inputs)
        self.high = ConvolutionalBlock(dims, num_hidden, num_hidden)
        self.readout = readout(dims, num_hidden, num_classes)

    def start(self, inputs: Tensor) -> tuple[Update, State]:
        """Returns the update, with the inputs injected into the low-level state, and a state of zeros."""

        def update(state: dict[str, Tensor]) -> dict[str, Tensor]:
            low, high = state["low"], state["high"]
            drive = self.low.drive(torch.cat([high, inputs], 1))
            for _ in range(self.low_steps):
                low = self.low(low, drive)
            return {"low": low, "high": self.high(high, self.high.drive(low))}

        zeros = inputs.new_zeros(len(inputs), self.num_hidden, *inputs.shape[2:])
        return update, {"low": zeros, "high": zeros.clone()}

    def scores(self, state: State) -> Tensor:
        """Returns the result of two convolutions of the high-level state."""
        scores: Tensor = self.readout(state["high"])
        return scores
