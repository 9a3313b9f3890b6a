"""The feature and adjacency matrices of a graph, cached on the graph."""

import hashlib
from functools import cached_property

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import BaseTransform

from datamodules.graph_checks import checked_edges, checked_features
from models.propagation.adjacency import Aggregation, adjacency_matrix
from models.snapshot import Snapshot
from rbp_lightning import SparseMatrix

SPARSE_BELOW = 0.2
"""Fraction of nonzero entries below which a sparse matrix is faster."""


class PreparedGraph:
    """The features and the adjacency matrix of a graph.

    Args:
        graph: The graph, with ``x`` and ``edge_index``.
        aggregation: How a node aggregates the states of its neighbours, as for ``adjacency_matrix``.
        dtype: Dtype of the weights that multiply the features. Sparse matrices are at least float32.

    Attributes:
        features: The features, dense or sparse, of shape ``[num_nodes, num_features]``.
        adjacency: The adjacency matrix.

    Raises:
        UserError: If ``x`` or ``edge_index`` is malformed.

    Example:
        >>> graph = Data(x=torch.ones(2, 3), edge_index=torch.tensor([[0, 1], [1, 0]]))
        >>> prepared = PreparedGraph(graph, "sum")
        >>> prepared.adjacency @ prepared.features
        tensor([[1., 1., 1.],
                [1., 1., 1.]])
    """

    def __init__(self, graph: Data, aggregation: Aggregation, dtype: torch.dtype = torch.float32) -> None:
        self._snapshot = _snapshot(graph, aggregation, dtype)
        self._x = x = checked_features("The graph", graph.get("x"))
        self._edges = checked_edges("The graph", graph.get("edge_index"), len(x))
        wide = torch.promote_types(dtype, torch.float32)
        is_dense = torch.count_nonzero(x) >= SPARSE_BELOW * x.numel()
        self.features: Tensor | SparseMatrix = x.to(dtype) if is_dense else SparseMatrix.from_dense(x.to(wide))
        self.adjacency = adjacency_matrix(self._edges, len(x), aggregation, wide)

    def is_of(self, graph: Data, aggregation: Aggregation, dtype: torch.dtype = torch.float32) -> bool:
        """Whether it was made with these arguments from this graph, which has not changed since."""
        return self._snapshot == _snapshot(graph, aggregation, dtype)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 checksum of the features and the edges."""
        digest = hashlib.sha256()
        for tensor in (self._x, self._edges):
            digest.update(f"{tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.contiguous().cpu().flatten().view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()


def _snapshot(graph: Data, aggregation: Aggregation, dtype: torch.dtype) -> Snapshot:
    return Snapshot(graph, ("x", "edge_index"), (aggregation, dtype))


class PrepareGraph(BaseTransform):  # type: ignore[misc]
    """Adds a ``PreparedGraph`` to a graph, as its attribute ``prepared``.

    An existing one is kept, unless the graph's tensors have changed, such as by a move to another device, or the
    aggregation or dtype differs. Calling the transform returns a copy of the graph, as with all PyG transforms;
    ``forward`` adds to the graph itself, which is then prepared only once.

    Args:
        aggregation: As for ``PreparedGraph``.
        dtype: As for ``PreparedGraph``.

    Example:
        >>> graph = Data(x=torch.ones(2, 3), edge_index=torch.tensor([[0, 1], [1, 0]]))
        >>> prepare = PrepareGraph("sum")
        >>> prepared = prepare(graph).prepared
        >>> prepare.forward(graph).prepared is prepare.forward(graph).prepared
        True
    """

    def __init__(self, aggregation: Aggregation, dtype: torch.dtype = torch.float32) -> None:
        self.aggregation = aggregation
        self.dtype = dtype

    def forward(self, data: Data) -> Data:
        """Adds to the graph itself.

        Args:
            data: The graph, with ``x`` and ``edge_index``.

        Raises:
            UserError: If ``x`` or ``edge_index`` is malformed.
        """
        prepared = data.get("prepared")
        if not isinstance(prepared, PreparedGraph) or not prepared.is_of(data, self.aggregation, self.dtype):
            with torch.inference_mode(False):  # training cannot use tensors created in inference mode
                data.prepared = PreparedGraph(data, self.aggregation, self.dtype)
        return data
