"""Cora, for the graph networks of the comparison."""

import torch
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import coalesce, degree

from benchmarks.peers.graphs import Graph
from datamodules import CitationGraph


def cora(name: str) -> Graph:
    """The graph for a case.

    Args:
        name: The case. The gated network uses 64 principal components and the mean of the neighbours, as
            ``configs/paper/cora.yaml`` does; the contractive one uses words and symmetric normalisation.

    Raises:
        UserError: If the files of Cora are missing.
    """
    mean = name == "gated network on Cora"
    data = CitationGraph(name="Cora", normalize_features=not mean, pca=64 if mean else None)
    with torch.device("cpu"):
        data.prepare_data()
        data.setup("fit")
        graph = data.graph
        edge_index = coalesce(graph.edge_index, num_nodes=graph.num_nodes)
        if mean:
            weights = 1 / degree(edge_index[1], graph.num_nodes, torch.float64)[edge_index[1]]
        else:
            edge_index, weights = gcn_norm(edge_index, num_nodes=graph.num_nodes, dtype=torch.float64)
    return Graph(graph.x, edge_index, weights)
