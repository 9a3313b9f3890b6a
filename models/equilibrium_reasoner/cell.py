"""The interface of reasoning cells."""

from abc import ABC, abstractmethod

from torch import Tensor, nn

from rbp_lightning.errors import check_count
from rbp_lightning.pytree import State
from rbp_lightning.solvers import Update


class ReasoningCell(nn.Module, ABC):
    """An update of a state at every position of a puzzle, which an ``EquilibriumReasoner`` iterates.

    States should be bounded, for example by ``rescaled``, since the reasoner does not treat growing changes as a
    failure.

    Constructor arguments must be plain values, each kept in an attribute of the same name, from which checkpoints
    record them.

    Args:
        num_inputs: Number of input channels, at least 1.
        num_classes: Number of classes of a position, at least 2.
        num_hidden: Number of hidden channels of a state, at least 1.

    Raises:
        UserError: If an argument is out of its range.
    """

    def __init__(self, num_inputs: int, num_classes: int, num_hidden: int) -> None:
        super().__init__()
        self.num_inputs = check_count(self, "num_inputs", num_inputs, 1)
        self.num_classes = check_count(self, "num_classes", num_classes, 2)
        self.num_hidden = check_count(self, "num_hidden", num_hidden, 1)

    @abstractmethod
    def start(self, inputs: Tensor) -> tuple[Update, State]:
        """Prepares a solve.

        Args:
            inputs: The puzzles, of shape ``[batch, num_inputs, *positions]``.

        Returns:
            The update, with the inputs injected at every step, and the initial state, zeros.
        """

    @abstractmethod
    def scores(self, state: State) -> Tensor:
        """Returns the class scores (logits) of a state, of shape ``[batch, num_classes, *positions]``."""


def rescaled(state: Tensor) -> Tensor:
    """Divides the channels of each position by their root mean square, so that a state neither grows nor vanishes.

    Args:
        state: The state, of shape ``[batch, channels, *positions]``.

    Example:
        >>> from models.equilibrium_reasoner.cell import rescaled
        >>> rescaled(torch.tensor([[[3.0], [-3.0]]])).flatten()
        tensor([ 1.0000, -1.0000])
    """
    return state * (state.square().mean(1, keepdim=True) + 1e-5).rsqrt()
