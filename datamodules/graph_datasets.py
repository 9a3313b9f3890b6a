"""Reading the graph of a PyG dataset."""

import copy
from collections.abc import Sequence
from typing import Any

from torch_geometric.data import Data, Dataset

from datamodules.graph_checks import checked_edges, checked_features, checked_labels
from rbp_lightning.errors import UserError


def only_graph(dataset: Any) -> Data:
    """Returns the graph of a PyG dataset that has exactly one, checked for node classification.

    Args:
        dataset: The dataset, or a list of one graph.

    Returns:
        The graph, with features ``x`` in float32, and with ``edge_index`` and labels ``y`` in int64.

    Raises:
        UserError: If there is not exactly one graph, or it is incomplete or malformed.

    Example:
        >>> from torch_geometric.datasets import KarateClub
        >>> only_graph(KarateClub()).num_nodes
        34
    """
    owner = type(dataset).__name__
    if not isinstance(dataset, Dataset | Sequence):
        raise UserError(f"dataset makes a {owner}: make a PyG dataset that holds one graph.")
    if len(dataset) != 1:
        raise UserError(f"{owner} holds {len(dataset)} graphs: give a dataset that holds one.")
    graph = dataset[0]
    if not isinstance(graph, Data):
        raise UserError(f"{owner} holds a {type(graph).__name__}: give a dataset that holds a Data.")
    graph = copy.copy(graph)  # the user's own graph stays unchanged
    graph.x = checked_features(owner, graph.x).float()
    num_nodes = len(graph.x)
    if graph.num_nodes != num_nodes:
        raise UserError(f"{owner}: x has {num_nodes} rows, but num_nodes={graph.num_nodes}: make them the same.")
    graph.edge_index = checked_edges(owner, graph.edge_index, num_nodes)
    graph.y = checked_labels(owner, graph.y, num_nodes)
    if not (graph.y >= 0).any():
        raise UserError(f"{owner}: no node has a label: give classes from 0 on in y, and -1 for none.")
    return graph
