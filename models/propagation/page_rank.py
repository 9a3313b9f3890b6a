"""Propagation by personalised PageRank."""

import math

import torch
from torch import Tensor, nn

from models.propagation.adjacency import Adjacency
from models.propagation.base import PropagationCell
from rbp_lightning import SparseMatrix
from rbp_lightning.errors import UserError, check_number
from rbp_lightning.solvers import Update


class PageRankCell(PropagationCell):
    """Z <- (1 - alpha) A Z + alpha MLP(X), whose fixed point is a personalised PageRank of the class scores.

    This is APPNP (Klicpera et al., ICLR 2019, equation 4) iterated to convergence. A is GCN's symmetric adjacency
    matrix, so the Jacobian has spectral norm 1 - alpha if the graph is undirected.

    Args:
        num_features: Number of features of a node.
        num_classes: Number of classes.
        num_hidden: Number of hidden units of the MLP, which has one hidden layer.
        alpha: Teleport probability, in (0, 1].
        learn_alpha: Whether to learn the logit of alpha; ``alpha`` is then the initial value, below 1.
        dropout: Dropout rate of the inputs of the MLP's two layers, in [0, 1).

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> cell = PageRankCell(num_features=5, num_classes=3, num_hidden=8)
        >>> no_edges = SparseMatrix.from_dense(torch.eye(2))
        >>> update, state = cell.start(torch.ones(2, 5), no_edges)
        >>> update(state).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_hidden: int = 64,
        alpha: float = 0.1,
        learn_alpha: bool = False,
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_features, num_classes, num_hidden, dropout)
        self.alpha = check_number(self, "alpha", alpha, 0.0, 1.0, low_allowed=False)
        self.learn_alpha = learn_alpha
        if learn_alpha and alpha == 1:
            raise UserError("PageRankCell: alpha=1 has no finite logit to learn: start below 1.")
        self.alpha_logit = nn.Parameter(torch.tensor(math.log(alpha / (1 - alpha)))) if learn_alpha else None
        self.hidden_to_scores = nn.Linear(num_hidden, num_classes)

    def start(self, features: Tensor | SparseMatrix, adjacency: Adjacency) -> tuple[Update, Tensor]:
        """Computes MLP(X)."""
        alpha = self.alpha if self.alpha_logit is None else torch.sigmoid(self.alpha_logit)
        drive = self.hidden_to_scores(self.dropped(torch.relu(self.injected(features))))
        return lambda state: (1 - alpha) * (adjacency @ state) + alpha * drive, drive

    def scores(self, state: Tensor) -> Tensor:
        """Returns the states, which are the scores."""
        return state
