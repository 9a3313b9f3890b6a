"""Cutting a graph into parts of equal size."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, eye
from scipy.sparse.linalg import lobpcg
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.utils import to_scipy_sparse_matrix

from datamodules.graph_checks import MASKS

Nodes = NDArray[np.int64]


def cut(graph: Data, parts: Sequence[Tensor]) -> list[Data]:
    """Cuts a graph into parts, in one pass over its edges.

    Args:
        graph: The graph, with ``x``, ``edge_index``, ``y`` and the masks of its splits.
        parts: The nodes of each part, int64; each node is in exactly one part.

    Returns:
        Each part as a graph with the edges inside it. ``nodes`` holds its nodes' numbers in the whole graph and
        ``whole`` that graph, for models that use the edges between parts.

    Example:
        >>> mask = torch.ones(3, dtype=torch.bool)
        >>> graph = Data(x=torch.eye(3), edge_index=torch.tensor([[0, 2, 1], [2, 0, 2]]), y=torch.arange(3))
        >>> graph.update({"train_mask": mask, "val_mask": mask, "test_mask": mask})
        Data(x=[3, 3], edge_index=[2, 3], y=[3], train_mask=[3], val_mask=[3], test_mask=[3])
        >>> [part.edge_index.tolist() for part in cut(graph, [torch.tensor([0, 2]), torch.tensor([1])])]
        [[[0, 1], [1, 0]], [[], []]]
    """
    edges = graph.edge_index
    part, place = (edges.new_empty(graph.num_nodes) for _ in range(2))  # of each node, and its number within the part
    for number, nodes in enumerate(parts):
        part[nodes], place[nodes] = number, torch.arange(len(nodes), device=edges.device)
    part_of_edge = part[edges[0]]
    inside = (part_of_edge == part[edges[1]]).nonzero()[:, 0]
    inside = inside[torch.argsort(part_of_edge[inside], stable=True)]
    counts = torch.bincount(part_of_edge[inside], minlength=len(parts)).tolist()
    return [
        Data(
            edge_index=place[edges[:, own]],
            nodes=nodes,
            whole=graph,
            **{name: graph[name][nodes] for name in ("x", "y", *MASKS)},
        )
        for nodes, own in zip(parts, inside.split(counts), strict=True)
    ]


def random_parts(num_nodes: int, count: int, seed: int) -> list[Tensor]:
    """Divides the nodes of a graph into parts at random, which is fast but cuts most edges.

    Args:
        num_nodes: Number of nodes.
        count: Number of parts, at most ``num_nodes``.
        seed: Seed of the choice.

    Returns:
        The nodes of each part, int64, in ascending order. The sizes differ by at most 1.

    Example:
        >>> sorted(len(part) for part in random_parts(num_nodes=10, count=3, seed=0))
        [3, 3, 4]
    """
    order = torch.randperm(num_nodes, generator=torch.Generator().manual_seed(seed))
    return [nodes.sort().values for nodes in order.tensor_split(count)]


def spectral_parts(edge_index: Tensor, num_nodes: int, count: int) -> list[Tensor]:
    """Divides the nodes of a graph into parts by recursive spectral bisection.

    The nodes are ordered by the second eigenvector of the normalised adjacency matrix and cut in the middle (Pothen,
    Simon and Liou, SIAM J. Matrix Anal. Appl. 11, 1990), and each half in turn until there are enough parts.

    Args:
        edge_index: Edges, int64, of shape ``[2, num_edges]``; their direction is ignored.
        num_nodes: Number of nodes.
        count: Number of parts, at most ``num_nodes``.

    Returns:
        The nodes of each part, int64, in ascending order. The sizes differ only by the rounding at each cut.

    Example:
        >>> two_pairs = torch.tensor([[0, 2, 1, 3, 0], [2, 0, 3, 1, 1]])
        >>> [part.tolist() for part in spectral_parts(two_pairs, num_nodes=4, count=2)]
        [[0, 2], [1, 3]]
    """
    directed = to_scipy_sparse_matrix(edge_index, num_nodes=num_nodes).tocsr()
    adjacency = directed.maximum(directed.T) + eye(num_nodes, format="csr")
    return [torch.from_numpy(np.sort(part)) for part in _bisect(adjacency, np.arange(num_nodes), count)]


def _bisect(adjacency: csr_matrix, nodes: Nodes, count: int) -> list[Nodes]:
    if count == 1 or len(nodes) == count:
        return list(np.array_split(nodes, count))
    ordered = nodes[_spectral_order(adjacency[nodes][:, nodes])]
    middle = len(nodes) * (count // 2) // count
    halves = (ordered[:middle], count // 2), (ordered[middle:], count - count // 2)
    return [part for half, parts in halves for part in _bisect(adjacency, half, parts)]


def _spectral_order(adjacency: csr_matrix) -> Nodes:
    root_degree = np.sqrt(np.asarray(adjacency.sum(1)).ravel())
    scaling = diags(1 / root_degree)
    # The first eigenvector is known: the square roots of the degrees.
    start = np.stack([root_degree, np.random.default_rng(0).standard_normal(len(root_degree))], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an inaccurate eigenvector only costs a few more cut edges
        values, vectors = lobpcg(scaling @ adjacency @ scaling, start, largest=True, tol=1e-3, maxiter=50)
    order: Nodes = np.argsort(vectors[:, np.argmin(values)] / root_degree, kind="stable")
    return order
