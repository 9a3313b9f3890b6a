"""The interface of propagation cells."""

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn
from torch.nn.functional import dropout

from models.propagation.adjacency import Adjacency, Aggregation
from rbp_lightning import SparseMatrix
from rbp_lightning.errors import UserError, check_count, check_entries, check_number
from rbp_lightning.solvers import Update


class PropagationCell(nn.Module, ABC):
    """An update of node states that a graph network iterates to its fixed point.

    Constructor arguments must be plain values, each kept in an attribute of the same name, from which checkpoints
    record them.

    Args:
        num_features: Number of features of a node, at least 1.
        num_classes: Number of classes, at least 2.
        num_hidden: Number of hidden units, at least 1.
        dropout: Dropout rate of the inputs of layers, in [0, 1).

    Attributes:
        aggregation: How a node aggregates the states of its neighbours.
        features_enter: ``"first_state"`` if only the initial state of a solve has the features.
        inject: The layer that is applied to the features.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> class HalfOfTheMean(PropagationCell):
        ...     "Half of the neighbours' mean, and a linear map of the features."
        ...     aggregation = "mean"
        ...     def start(self, features, adjacency):
        ...         drive = self.injected(features)
        ...         return lambda state: 0.5 * (adjacency @ state) + drive, drive
        ...     def scores(self, state):
        ...         return state
        >>> cell = HalfOfTheMean(num_features=5, num_classes=3, num_hidden=3)
    """

    aggregation: Aggregation = "symmetric"
    features_enter: Literal["every_step", "first_state"] = "every_step"

    def __init__(self, num_features: int, num_classes: int, num_hidden: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.num_features = check_count(self, "num_features", num_features, 1)
        self.num_classes = check_count(self, "num_classes", num_classes, 2)
        self.num_hidden = check_count(self, "num_hidden", num_hidden, 1)
        self.dropout = check_number(self, "dropout", dropout, 0.0)
        if dropout >= 1:
            raise UserError(f"{type(self).__name__}: dropout={dropout!r} must be below 1: lower it.")
        # The largest matrices that a cell may have; a GRU's is three in one.
        widest = max(num_features, num_classes, 3 * num_hidden)
        sizes = {"num_features": num_features, "num_classes": num_classes, "num_hidden": num_hidden}
        check_entries(self, widest * num_hidden, **sizes)
        self.inject = nn.Linear(num_features, num_hidden)
        nn.init.xavier_uniform_(self.inject.weight)
        nn.init.zeros_(self.inject.bias)

    @abstractmethod
    def start(self, features: Tensor | SparseMatrix, adjacency: Adjacency) -> tuple[Update, Tensor]:
        """Prepares a solve, including its dropout masks: with new masks at each step there would be no fixed point.

        Args:
            features: Features of the nodes, of shape ``[num_nodes, num_features]``.
            adjacency: The matrix A that aggregates the neighbours' states as A @ states. It must be applied to the
                state itself, since for a part of a graph the product also adds the states of neighbours outside.

        Returns:
            The update of states of shape ``[num_nodes, d]``, and the initial state.
        """

    @abstractmethod
    def scores(self, state: Tensor) -> Tensor:
        """Returns the class scores (logits) of a state, of shape ``[num_nodes, num_classes]``."""

    def injected(self, features: Tensor | SparseMatrix) -> Tensor:
        """Applies dropout and the input layer to the features; returns a tensor ``[num_nodes, num_hidden]``."""
        if isinstance(features, SparseMatrix):
            features = features.with_values(self.dropped(features.values))
        else:
            features = self.dropped(features)
        return features @ self.inject.weight.T + self.inject.bias

    def dropped(self, inputs: Tensor) -> Tensor:
        """Applies dropout to a layer's inputs during training."""
        return dropout(inputs, self.dropout, self.training)
