"""A user's own graph."""

import torch
from torch_geometric.data import Data, Dataset

from rbp_lightning.errors import UserError


def only_graph(dataset: Dataset) -> Data:
    """Takes the graph of a PyG dataset that holds one, and checks that its nodes can be classified.

    Args:
        dataset: The dataset.

    Returns:
        The graph, with features ``x`` in float32 and labels ``y`` in int64.

    Raises:
        UserError: If there is another number of graphs, or the graph lacks something or does not fit together.

    Example:
        >>> from torch_geometric.datasets import KarateClub
        >>> only_graph(KarateClub()).num_nodes
        34
    """
    if len(dataset) != 1:
        raise UserError(f"{type(dataset).__name__} holds {len(dataset)} graphs: give a dataset that holds one.")
    graph, name = dataset[0], type(dataset).__name__
    for wanted in ("x", "edge_index", "y"):
        if graph.get(wanted) is None:
            raise UserError(f"The graph of {name} has no {wanted}, which classifying its nodes needs.")
    if graph.y.dim() != 1 or graph.y.is_floating_point():
        raise UserError(
            f"The graph of {name} has labels y of shape {tuple(graph.y.shape)} and type {graph.y.dtype}: one class "
            "number for each node is needed."
        )
    graph.x = (graph.x if graph.x.layout is torch.strided else graph.x.to_dense()).float()
    graph.y = graph.y.long()
    nodes = len(graph.x)
    edges_known = graph.edge_index.numel() == 0 or 0 <= graph.edge_index.min() <= graph.edge_index.max() < nodes
    if graph.x.dim() != 2 or len(graph.y) != nodes or not edges_known or not graph.x.isfinite().all():
        raise UserError(
            f"The graph of {name} does not fit together: x must be finite and of shape [num_nodes, num_features], y of "
            "shape [num_nodes], and edge_index must hold numbers of nodes."
        )
    if not (graph.y >= 0).any():
        raise UserError(f"The graph of {name} has no label: y must be a class from 0 on, and -1 where there is none.")
    return graph
