"""Checks of graphs for node classification.

Each function takes the name of the graph's owner for its messages. The checks wait for the device, so they belong
outside of training steps.
"""

from typing import Any

import torch
from torch import Tensor

from rbp_lightning.errors import UserError

MASKS = ("train_mask", "val_mask", "test_mask")
"""Names of the masks of a graph's splits."""


def checked_features(owner: str, x: Any) -> Tensor:
    """Checks node features.

    Args:
        owner: The owner of the graph.
        x: Finite real numbers of shape ``[num_nodes, num_features]``, dense or sparse.

    Returns:
        The dense features, in their own dtype.

    Raises:
        UserError: If they are anything else.
    """
    _check_shape(owner, "x", x, [None, None], "[num_nodes, num_features], a row for each node")
    dense: Tensor = x if x.layout is torch.strided else x.to_dense()
    if dense.is_complex() or not dense.isfinite().all():
        raise UserError(f"{owner}: x holds NaN, infinity or complex numbers: replace them by finite real ones.")
    return dense


def checked_edges(owner: str, edge_index: Any, num_nodes: int) -> Tensor:
    """Checks the edges of a graph.

    Args:
        owner: The owner of the graph.
        edge_index: Source and target of each edge, integers of shape ``[2, num_edges]``.
        num_nodes: Number of nodes.

    Returns:
        The edges, int64.

    Raises:
        UserError: If they are anything else, or name a node that does not exist.
    """
    _check_shape(owner, "edge_index", edge_index, [2, None], "[2, num_edges], a row of sources and a row of targets")
    _check_integers(owner, "edge_index", edge_index)
    edges: Tensor = edge_index.long()
    if edges.numel():
        low, high = (int(end) for end in edges.aminmax())
        if low < 0 or high >= num_nodes:
            raise UserError(
                f"{owner}: edge_index holds node {low if low < 0 else high}, but the {num_nodes} nodes of x have the "
                f"numbers 0 to {num_nodes - 1}: renumber the edges, or add the missing rows to x."
            )
    return edges


def checked_labels(owner: str, y: Any, num_nodes: int) -> Tensor:
    """Checks the labels of nodes.

    Args:
        owner: The owner of the graph.
        y: Class of each node, counted from 0 and negative for none: integers of shape ``[num_nodes]``.
        num_nodes: Number of nodes.

    Returns:
        The labels, int64.

    Raises:
        UserError: If they are anything else.
    """
    _check_shape(owner, "y", y, [num_nodes], f"[{num_nodes}], a class for each node")
    _check_integers(owner, "y", y)
    labels: Tensor = y.long()
    return labels


def checked_mask(owner: str, name: str, mask: Any, num_nodes: int) -> Tensor:
    """Checks the mask of a split.

    Args:
        owner: The owner of the graph.
        name: Name of the mask.
        mask: Whether each node belongs to the split: bool, of shape ``[num_nodes]``.
        num_nodes: Number of nodes.

    Returns:
        The mask.

    Raises:
        UserError: If it is anything else.
    """
    _check_shape(owner, name, mask, [num_nodes], f"[{num_nodes}], a bool for each node")
    if mask.dtype != torch.bool:
        raise UserError(f"{owner}: {name} has the dtype {mask.dtype}: pass a bool for each node.")
    checked: Tensor = mask
    return checked


def _check_shape(owner: str, name: str, value: Any, shape: list[int | None], wanted: str) -> None:
    """Checks that a value is a tensor of a shape, in which ``None`` matches any size."""
    if value is None:
        raise UserError(f"{owner}: {name} is missing: add a tensor of shape {wanted}.")
    if not isinstance(value, Tensor):
        raise UserError(f"{owner}: {name} is a {type(value).__name__}: pass a tensor of shape {wanted}.")
    sizes = list(value.shape)
    if len(sizes) != len(shape) or any(size not in (None, own) for own, size in zip(sizes, shape, strict=True)):
        raise UserError(f"{owner}: {name} has the shape {sizes}: pass {wanted}.")


def _check_integers(owner: str, name: str, value: Tensor) -> None:
    if value.is_floating_point() or value.is_complex() or value.dtype == torch.bool:
        raise UserError(f"{owner}: {name} has the dtype {value.dtype}: convert it to integers (torch.int64).")
