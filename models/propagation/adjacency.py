"""Adjacency matrices that aggregate the states of neighbours."""

from typing import Literal, Protocol, TypeAlias

import torch
from torch import Tensor
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import coalesce, degree

from rbp_lightning import SparseMatrix

Aggregation: TypeAlias = Literal["sum", "mean", "symmetric"]
"""How a node aggregates the states of its neighbours."""


class Adjacency(Protocol):
    """A matrix A, or an equivalent object, that aggregates the neighbours' states."""

    def __matmul__(self, states: Tensor, /) -> Tensor:
        """Returns A @ states, of the same shape ``[num_nodes, d]``."""


def adjacency_matrix(
    edge_index: Tensor, num_nodes: int, aggregation: Aggregation, dtype: torch.dtype = torch.float32
) -> SparseMatrix:
    """Returns the matrix A that aggregates the neighbours' states Z as A Z.

    Args:
        edge_index: Sources and targets of the edges, integers of shape ``[2, num_edges]``. Repeated edges count once.
        num_nodes: Number of nodes.
        aggregation: ``"sum"`` or ``"mean"`` of the neighbours' states, or the ``"symmetric"`` normalisation of GCN
            (Kipf and Welling 2017), D^-1/2 (A + I) D^-1/2, which adds a self-loop to every node and has spectral norm 1
            if the graph is undirected.
        dtype: Dtype of the entries.

    Returns:
        The matrix, of shape ``[num_nodes, num_nodes]``, with a row for each target.

    Raises:
        UserError: If an index is not that of a node.

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> adjacency_matrix(path, 3, "mean") @ torch.tensor([[1.0], [5.0], [3.0]])
        tensor([[5.],
                [2.],
                [5.]])
    """
    # PyG encodes an edge as row * num_nodes + col, which overflows int32 from 46,341 nodes on.
    edge_index = coalesce(edge_index.long(), num_nodes=num_nodes)
    if aggregation == "symmetric":
        edge_index, values = gcn_norm(edge_index, num_nodes=num_nodes, dtype=dtype)
    else:
        values = torch.ones(edge_index.shape[1], dtype=dtype, device=edge_index.device)
        if aggregation == "mean":
            values = values / degree(edge_index[1], num_nodes, dtype)[edge_index[1]]
    return SparseMatrix(edge_index[1], edge_index[0], values, (num_nodes, num_nodes))
