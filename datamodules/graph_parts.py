"""Cutting a graph into parts of equal size along few edges."""

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags, eye
from scipy.sparse.linalg import lobpcg
from torch import Tensor
from torch_geometric.utils import to_scipy_sparse_matrix

Nodes = NDArray[np.int64]


def spectral_parts(edge_index: Tensor, num_nodes: int, count: int) -> list[Tensor]:
    """Cuts the nodes of a graph into parts, by recursive spectral bisection.

    The nodes are ordered by the second eigenvector of the normalised adjacency matrix and cut in the middle (Pothen,
    Simon and Liou, SIAM J. Matrix Anal. Appl. 11, 1990), and each half in turn until there are enough parts.

    Args:
        edge_index: Edges, int64, of shape ``[2, num_edges]``; their direction is ignored.
        num_nodes: Number of nodes.
        count: Number of parts, at most ``num_nodes``.

    Returns:
        The nodes of each part, int64, in ascending order. The sizes differ by no more than rounding at each cut.

    Example:
        >>> two_pairs = torch.tensor([[0, 2, 1, 3, 0], [2, 0, 3, 1, 1]])
        >>> [part.tolist() for part in spectral_parts(two_pairs, num_nodes=4, count=2)]
        [[0, 2], [1, 3]]
    """
    directed = to_scipy_sparse_matrix(edge_index, num_nodes=num_nodes).tocsr()
    adjacency = directed.maximum(directed.T) + eye(num_nodes, format="csr")
    return [torch.from_numpy(np.sort(part)) for part in _bisected(adjacency, np.arange(num_nodes), count)]


def _bisected(adjacency: csr_matrix, nodes: Nodes, count: int) -> list[Nodes]:
    if count == 1 or len(nodes) == count:
        return list(np.array_split(nodes, count))
    ordered = nodes[_spectral_order(adjacency[nodes][:, nodes])]
    middle = len(nodes) * (count // 2) // count
    return _bisected(adjacency, ordered[:middle], count // 2) + _bisected(
        adjacency, ordered[middle:], count - count // 2
    )


def _spectral_order(adjacency: csr_matrix) -> Nodes:
    root_degree = np.sqrt(np.asarray(adjacency.sum(1)).ravel())
    scaling = diags(1 / root_degree)
    # The first eigenvector is known: the square roots of the degrees.
    start = np.stack([root_degree, np.random.default_rng(0).standard_normal(len(root_degree))], axis=1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # an inaccurate eigenvector only cuts a few more edges
        values, vectors = lobpcg(scaling @ adjacency @ scaling, start, largest=True, tol=1e-3, maxiter=50)
    order: Nodes = np.argsort(vectors[:, np.argmin(values)] / root_degree, kind="stable")
    return order
