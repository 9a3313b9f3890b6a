"""A linear node classifier, the paper's baseline without propagation."""

from torch import Tensor, nn
from torch_geometric.data import Data

from models.node_classifier import NodeClassifier
from rbp_lightning.errors import check_count, check_entries


class LinearClassifier(NodeClassifier):
    """Classifies each node by a linear map of its own features (baseline of the paper's section 4.2).

    Args:
        num_features: Number of features of a node, at least 1.
        num_classes: Number of classes, at least 2.
        learning_rate: Adam's learning rate, above 0.
        weight_decay: L2 penalty, at least 0.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> graph = Data(x=torch.ones(3, 5), edge_index=torch.empty(2, 0, dtype=torch.int64))
        >>> LinearClassifier(num_features=5, num_classes=2).class_scores(graph, "predict").shape
        torch.Size([3, 2])
    """

    def __init__(
        self, num_features: int, num_classes: int, learning_rate: float = 0.01, weight_decay: float = 5e-4
    ) -> None:
        check_count(self, "num_features", num_features, 1)
        check_count(self, "num_classes", num_classes, 2)
        check_entries(self, num_features * num_classes, num_features=num_features, num_classes=num_classes)
        layer = nn.Linear(num_features, num_classes)
        super().__init__(layer, num_classes, learning_rate, weight_decay)
        self.save_hyperparameters()
        self.layer = layer

    def class_scores(self, graph: Data, stage: str) -> Tensor:
        """Returns the scores of all nodes, of shape ``[num_nodes, num_classes]``.

        Args:
            graph: The graph.
            stage: Unused.
        """
        scores: Tensor = self.layer(graph.x.to(self.layer.weight.dtype))
        return scores
