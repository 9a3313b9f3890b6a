"""The paper's gated propagation by a GRU."""

from typing import Literal

import torch
from torch import Tensor, nn

from models.propagation.adjacency import Adjacency
from models.propagation.base import PropagationCell
from rbp_lightning import SparseMatrix
from rbp_lightning.errors import check_choice
from rbp_lightning.solvers import Update


class GRUPropagation(PropagationCell):
    """Z <- GRU(A Z + U(X), Z), with a linear readout (paper, section 4.2).

    The update is not bounded: whether it converges depends on the weights.

    Args:
        num_features: Number of features of a node.
        num_classes: Number of classes.
        num_hidden: Number of hidden units.
        aggregation: Whether A takes the ``"sum"`` or the ``"mean"`` of the neighbours' states.
        features_enter: ``"every_step"``, as above, or ``"first_state"``: Z <- GRU(A Z, Z) from Z = U(X), as in the
            paper's released code. A contraction then forgets the features with its initial state, and only ``BPTT``
            trains the layer U.
        dropout: Dropout rate of the features and of the readout's inputs, in [0, 1).

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> cell = GRUPropagation(num_features=5, num_classes=3, num_hidden=8)
        >>> update, state = cell.start(torch.ones(2, 5), SparseMatrix.from_dense(torch.eye(2)))
        >>> update(state).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_hidden: int = 64,
        aggregation: Literal["sum", "mean"] = "mean",
        features_enter: Literal["every_step", "first_state"] = "every_step",
        dropout: float = 0.0,
    ) -> None:
        super().__init__(num_features, num_classes, num_hidden, dropout)
        check_choice(self, "aggregation", aggregation, ("sum", "mean"))
        check_choice(self, "features_enter", features_enter, ("every_step", "first_state"))
        self.aggregation = aggregation
        self.features_enter = features_enter
        self.gru = nn.GRUCell(num_hidden, num_hidden)
        self.readout = nn.Linear(num_hidden, num_classes)

    def start(self, features: Tensor | SparseMatrix, adjacency: Adjacency) -> tuple[Update, Tensor]:
        """Computes U(X), the input or the initial state of the update."""
        injected = self.injected(features)
        if self.features_enter == "first_state":
            return lambda state: self.gru(adjacency @ state, state), injected
        return lambda state: self.gru(adjacency @ state + injected, state), torch.zeros_like(injected)

    def scores(self, state: Tensor) -> Tensor:
        """Applies the linear readout."""
        scores: Tensor = self.readout(self.dropped(state))
        return scores
