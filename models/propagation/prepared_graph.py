"""A graph as the matrices that cells multiply by."""

import hashlib
from functools import cached_property
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.nn.conv.gcn_conv import gcn_norm
from torch_geometric.utils import coalesce, degree

from rbp_lightning import SparseMatrix

Aggregation: TypeAlias = Literal["sum", "mean", "symmetric"]
"""How a node sums up the states of its neighbours."""

SPARSE_BELOW = 0.2
"""Share of entries that are not zero, up to which the product with a sparse matrix is the faster one."""


class PreparedGraph:
    """The features and the adjacency matrix of a graph.

    Args:
        graph: The graph, with ``x`` and ``edge_index``.
        aggregation: As ``adjacency_matrix`` takes it.
        dtype: Type of the weights that the features meet; sparse matrices are float32 at least.

    Attributes:
        features: The features, dense or sparse, of shape ``[num_nodes, num_features]``.
        adjacency: The matrix of the aggregation.

    Example:
        >>> graph = Data(x=torch.ones(2, 3), edge_index=torch.tensor([[0, 1], [1, 0]]))
        >>> prepared = PreparedGraph(graph, "sum")
        >>> prepared.adjacency @ prepared.features
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """

    def __init__(self, graph: Data, aggregation: Aggregation, dtype: torch.dtype = torch.float32) -> None:
        self._sources = _sources(graph)
        self._dtype = dtype
        wide = torch.promote_types(dtype, torch.float32)
        dense = torch.count_nonzero(graph.x) >= SPARSE_BELOW * graph.x.numel()
        self.features = graph.x.to(dtype) if dense else SparseMatrix.from_dense(graph.x.to(wide))
        self.adjacency = adjacency_matrix(graph.edge_index, graph.num_nodes, aggregation, wide)

    def is_of(self, graph: Data, dtype: torch.dtype = torch.float32) -> bool:
        """Whether this was made from these very tensors, which have not changed since, for weights of this type."""
        pairs = zip(self._sources, _sources(graph), strict=True)
        same = all(tensor is other and version == newer for (tensor, version), (other, newer) in pairs)
        return same and dtype == self._dtype

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 sum of the features and the edges."""
        digest = hashlib.sha256()
        for tensor, _ in self._sources:
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def _sources(graph: Data) -> list[tuple[Tensor, int]]:
    tensors = (graph.x, graph.edge_index)
    # Tensors made in inference mode do not count their versions.
    return [(tensor, 0 if tensor.is_inference() else tensor._version) for tensor in tensors]


def adjacency_matrix(
    edge_index: Tensor, num_nodes: int, aggregation: Aggregation, dtype: torch.dtype = torch.float32
) -> SparseMatrix:
    """Makes the matrix A that sums up the neighbours' states Z as A Z.

    Args:
        edge_index: Sources and targets of the edges, int64, of shape ``[2, num_edges]``; an edge that occurs twice
            counts once.
        num_nodes: Number of nodes.
        aggregation: ``"sum"`` of the neighbours' states, their ``"mean"``, or ``"symmetric"``, that of GCN (Kipf and
            Welling 2017): D^-1/2 (A + I) D^-1/2 with a self-loop at every node, of spectral norm 1 where every edge
            goes both ways.
        dtype: Type of the entries.

    Returns:
        The matrix, of shape ``[num_nodes, num_nodes]``; a row is a target.

    Example:
        >>> path = torch.tensor([[0, 1, 1, 2], [1, 0, 2, 1]])
        >>> adjacency_matrix(path, 3, "mean") @ torch.tensor([[1.0], [5.0], [3.0]])
        tensor([[5.],
                [2.],
                [5.]])
    """
    edge_index = coalesce(edge_index, num_nodes=num_nodes)
    if aggregation == "symmetric":
        edge_index, values = gcn_norm(edge_index, num_nodes=num_nodes, dtype=dtype)
    else:
        values = torch.ones(edge_index.shape[1], dtype=dtype, device=edge_index.device)
        if aggregation == "mean":
            values = values / degree(edge_index[1], num_nodes, dtype)[edge_index[1]]
    return SparseMatrix(edge_index[1], edge_index[0], values, (num_nodes, num_nodes))
