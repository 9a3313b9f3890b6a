"""A cell with self-attention."""

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from models.equilibrium_reasoner.cell import ReasoningCell, rescaled
from rbp_lightning.errors import UserError, check_count
from rbp_lightning.pytree import State
from rbp_lightning.solvers import Update


class AttentionCell(ReasoningCell):
    """A transformer layer that is iterated with the inputs injected at every step.

    u = h + d, where d is a linear map of the inputs plus a learned vector per position; then u <- u + attention(u) and
    u <- u + MLP(u), each rescaled as in Hierarchical and Tiny Recursive Models. The number of positions is fixed.

    Args:
        num_inputs: Number of input channels.
        num_classes: Number of classes of a position.
        num_hidden: Number of hidden channels.
        num_positions: Number of positions of a puzzle, such as 16 for a 4 x 4 grid.
        num_heads: Number of attention heads, a divisor of ``num_hidden``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> cell = AttentionCell(num_inputs=4, num_classes=4, num_positions=16, num_hidden=8)
        >>> update, state = cell.start(torch.ones(3, 4, 4, 4))
        >>> cell.scores(update(state)).shape
        torch.Size([3, 4, 4, 4])
    """

    def __init__(
        self, num_inputs: int, num_classes: int, num_positions: int, num_hidden: int = 64, num_heads: int = 4
    ) -> None:
        super().__init__(num_inputs, num_classes, num_hidden)
        self.num_positions = check_count(self, "num_positions", num_positions, 1)
        self.num_heads = check_count(self, "num_heads", num_heads, 1)
        if num_hidden % num_heads:
            raise UserError(f"AttentionCell: num_heads={num_heads} does not divide num_hidden={num_hidden}: lower it.")
        self.inject = nn.Conv1d(num_inputs, num_hidden, 1)
        self.positions = nn.Parameter(torch.randn(num_hidden, num_positions))
        self.queries_keys_values = nn.Conv1d(num_hidden, 3 * num_hidden, 1, bias=False)
        self.mixed = nn.Conv1d(num_hidden, num_hidden, 1, bias=False)
        self.perceptron = nn.Sequential(
            nn.Conv1d(num_hidden, 2 * num_hidden, 1), nn.ReLU(), nn.Conv1d(2 * num_hidden, num_hidden, 1)
        )
        self.readout = nn.Conv1d(num_hidden, num_classes, 1)

    def start(self, inputs: Tensor) -> tuple[Update, State]:
        """Computes d, and returns the update and a state of zeros.

        Raises:
            UserError: If a puzzle has another number of positions.
        """
        count = inputs.shape[2:].numel()
        if count != self.num_positions:
            raise UserError(
                f"AttentionCell: num_positions={self.num_positions}, but the puzzles have {count}: set it to {count}."
            )
        drive = self.inject(inputs.flatten(2)) + self.positions

        def update(state: Tensor) -> Tensor:
            hidden = rescaled(state.flatten(2) + drive)
            hidden = rescaled(hidden + self._attention(hidden))
            return rescaled(hidden + self.perceptron(hidden)).reshape(state.shape)

        return update, inputs.new_zeros(len(inputs), self.num_hidden, *inputs.shape[2:])

    def _attention(self, hidden: Tensor) -> Tensor:
        shape = (len(hidden), 3 * self.num_heads, -1, self.num_positions)
        parts = self.queries_keys_values(hidden).reshape(shape).transpose(2, 3).chunk(3, dim=1)
        seen = scaled_dot_product_attention(*parts).transpose(2, 3)
        mixed: Tensor = self.mixed(seen.reshape(hidden.shape))
        return mixed

    def scores(self, state: State) -> Tensor:
        """Returns a linear map of each position's state."""
        scores: Tensor = self.readout(state.flatten(2))
        return scores.reshape(len(state), self.num_classes, *state.shape[2:])
