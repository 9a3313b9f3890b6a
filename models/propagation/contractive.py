"""Propagation with a learned matrix of bounded norm."""

from typing import Literal

import torch
from torch import Tensor, nn

from models.parametrized_weight import ParametrizedWeight
from models.propagation.adjacency import Adjacency
from models.propagation.base import PropagationCell
from rbp_lightning import FrobeniusNormBound, InfinityNormBound, SparseMatrix, SpectralNormBound
from rbp_lightning.errors import UserError, check_choice, check_number
from rbp_lightning.solvers import Update

BOUNDS = {"spectral": SpectralNormBound, "frobenius": FrobeniusNormBound, "infinity": InfinityNormBound}
ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh}


class ContractiveCell(PropagationCell):
    """Z <- phi(A Z W) + U(X), with a matrix W whose norm is bounded below 1, and a linear readout.

    This is IGNN (Gu et al., NeurIPS 2020) with U outside of phi. GCN's symmetric adjacency matrix A has spectral norm 1
    if the graph is undirected, and the slopes of phi are at most 1. With the spectral or the Frobenius norm, the update
    is therefore a contraction with constant ``bound`` in the Frobenius norm of Z.

    Args:
        num_features: Number of features of a node.
        num_classes: Number of classes.
        num_hidden: Number of hidden units.
        norm: The bounded norm of W: ``"spectral"``, ``"frobenius"``, or ``"infinity"``, the largest absolute row sum of
            the transpose of W, as in IGNN.
        bound: The bound, in (0, 1).
        activation: phi, ``"relu"`` or ``"tanh"``.
        dropout: Dropout rate of the features and of the readout's inputs, in [0, 1).

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> cell = ContractiveCell(num_features=5, num_classes=3, num_hidden=8, bound=0.9)
        >>> bool(torch.linalg.matrix_norm(cell.propagate.weight, 2) <= 0.9001)
        True
    """

    def __init__(
        self,
        num_features: int,
        num_classes: int,
        num_hidden: int = 64,
        norm: Literal["spectral", "frobenius", "infinity"] = "spectral",
        bound: float = 0.9,
        activation: Literal["relu", "tanh"] = "relu",
        dropout: float = 0.5,
    ) -> None:
        super().__init__(num_features, num_classes, num_hidden, dropout)
        self.norm = check_choice(self, "norm", norm, BOUNDS)
        self.bound = check_number(self, "bound", bound, 0.0, low_allowed=False)
        if bound >= 1:
            raise UserError(f"ContractiveCell: bound={bound!r} must be below 1 for a contraction: lower it.")
        self.activation = check_choice(self, "activation", activation, ACTIVATIONS)
        original = nn.Linear(num_hidden, num_hidden, bias=False).weight
        self.propagate = ParametrizedWeight(original, BOUNDS[norm](bound))
        self.readout = nn.Linear(num_hidden, num_classes)

    def start(self, features: Tensor | SparseMatrix, adjacency: Adjacency) -> tuple[Update, Tensor]:
        """Computes U(X) and the bounded matrix."""
        drive, weight, phi = self.injected(features), self.propagate.weight.T, ACTIVATIONS[self.activation]
        return lambda state: phi((adjacency @ state) @ weight) + drive, drive

    def scores(self, state: Tensor) -> Tensor:
        """Applies the linear readout."""
        scores: Tensor = self.readout(self.dropped(state))
        return scores
