"""Rows of an adjacency matrix, for solving parts of a graph and for evaluating updates in blocks."""

from itertools import pairwise

import torch
from torch import Tensor

from models.propagation.base import PropagationCell
from rbp_lightning import SparseMatrix
from rbp_lightning.solvers import Update


class PartialAdjacency:
    """Aggregates for some of the nodes only: A_own @ states + inflow.

    Args:
        own: The entries of A between these nodes; ``None`` if ``inflow`` is the whole product.

    Attributes:
        inflow: The contribution of the other nodes, of shape ``[num_rows, d]``, to be set before the product.

    Example:
        >>> adjacency = PartialAdjacency(SparseMatrix.from_dense(torch.eye(2)))
        >>> adjacency.inflow = torch.tensor([[10.0], [20.0]])
        >>> adjacency @ torch.tensor([[1.0], [2.0]])
        tensor([[11.],
                [22.]])
    """

    inflow: Tensor

    def __init__(self, own: SparseMatrix | None) -> None:
        self.own = own

    def __matmul__(self, states: Tensor) -> Tensor:
        """Aggregates the states, of shape ``[num_rows, d]``."""
        return self.inflow if self.own is None else self.own @ states + self.inflow


class PartMatrices:
    """The rows of an adjacency matrix that belong to a part of the nodes.

    Args:
        adjacency: The matrix A of all nodes.
        nodes: The part's nodes, int64, in ascending order.

    Attributes:
        adjacency: A.
        own: The entries between the part's nodes, of shape ``[num_part, num_part]``.
        outside: The entries from other nodes, of shape ``[num_part, num_nodes]``.

    Example:
        >>> matrices = PartMatrices(SparseMatrix.from_dense(torch.ones(3, 3)), torch.tensor([0, 2]))
        >>> matrices.own.shape, len(matrices.own.values), len(matrices.outside.values)
        ((2, 2), 4, 2)
    """

    def __init__(self, adjacency: SparseMatrix, nodes: Tensor) -> None:
        self.adjacency = adjacency
        row, col, values = adjacency.rows(nodes).entries
        place = torch.full((adjacency.shape[1],), -1, device=nodes.device)
        place[nodes] = torch.arange(len(nodes), device=nodes.device)
        own = place[col]
        inside = own >= 0
        self.own = SparseMatrix(row[inside], own[inside], values[inside], (len(nodes), len(nodes)))
        self.outside = SparseMatrix(row[~inside], col[~inside], values[~inside], (len(nodes), adjacency.shape[1]))


def rows_of(features: Tensor | SparseMatrix, index: slice | Tensor) -> Tensor | SparseMatrix:
    """Returns rows of dense or sparse features.

    Args:
        features: The features, of shape ``[num_nodes, num_features]``.
        index: The rows.
    """
    return features.rows(index) if isinstance(features, SparseMatrix) else features[index]


def start_in_blocks(
    cell: PropagationCell, features: Tensor | SparseMatrix, adjacency: SparseMatrix, count: int
) -> tuple[Update, Tensor]:
    """Prepares a solve whose update is computed in blocks of rows, so that intermediate results are those of a block.

    It is the cell's update of all nodes, with the same fixed point and the same number of steps.

    Args:
        cell: The cell.
        features: Features of the nodes, of shape ``[num_nodes, num_features]``.
        adjacency: The adjacency matrix.
        count: Number of blocks, at least 1.

    Returns:
        The update and the initial state, as from ``cell.start``.

    Example:
        >>> from models import PageRankCell
        >>> cell = PageRankCell(num_features=4, num_classes=2, dropout=0.0)
        >>> features, adjacency = torch.eye(4), SparseMatrix.from_dense(torch.full((4, 4), 0.25))
        >>> update, state = start_in_blocks(cell, features, adjacency, count=3)
        >>> whole, start = cell.start(features, adjacency)
        >>> torch.allclose(update(state), whole(start))
        True
    """
    num_nodes, partial = adjacency.shape[0], PartialAdjacency(None)
    limits = [num_nodes * number // count for number in range(count + 1)]
    blocks = [slice(begin, end) for begin, end in pairwise(limits)]

    # Blocks are started anew at each step; keeping them would take the memory of a whole state.
    def in_blocks(state: Tensor) -> Tensor:
        following = torch.empty_like(state)
        for rows in blocks:
            update, _ = cell.start(rows_of(features, rows), partial)
            partial.inflow = adjacency.rows(rows) @ state
            following[rows] = update(state[rows])
        return following

    return in_blocks, torch.cat([cell.start(rows_of(features, rows), partial)[1] for rows in blocks])
