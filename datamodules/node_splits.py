"""Splits of a graph's nodes into training, validation and test."""

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import RandomNodeSplit

from datamodules.graph_checks import MASKS, checked_mask
from rbp_lightning.errors import UserError

Split = tuple[Tensor, Tensor, Tensor]
"""Masks of the training, validation and test nodes, bool, of shape [num_nodes]."""


def public_split(graph: Data, number: int) -> Split:
    """Returns the split that comes with a graph.

    Args:
        graph: The graph, whose masks are bool, of shape ``[num_nodes]`` or ``[num_nodes, num_splits]``.
        number: The index of the split, modulo the number of splits.

    Raises:
        UserError: If the graph has no such masks.
    """
    masks = []
    for name in MASKS:
        mask = graph.get(name)
        if mask is None:
            raise UserError(f"The dataset has no {name}: set split to ratio or per_class.")
        if isinstance(mask, Tensor) and mask.dim() == 2 and mask.shape[1] > 0:
            mask = mask[:, number % mask.shape[1]]
        masks.append(checked_mask("The dataset", name, mask, len(graph.x)))
    return masks[0], masks[1], masks[2]


def split_by_ratio(labels: Tensor, train: float, val: float, seed: int) -> Split:
    """Splits the labelled nodes by shares; the test nodes are the rest (paper, section 4.2).

    Args:
        labels: Class of each node, -1 for none.
        train: Share of training nodes, rounded to whole nodes.
        val: Share of validation nodes, rounded to whole nodes.
        seed: Seed of the random choice.

    Raises:
        UserError: If a set would have no nodes.

    Example:
        >>> [int(mask.sum()) for mask in split_by_ratio(torch.zeros(100), train=0.01, val=0.49, seed=0)]
        [1, 49, 50]
    """
    count = int((labels >= 0).sum())
    num_train, num_val = round(train * count), round(val * count)
    # RandomNodeSplit uses the remaining nodes for training.
    transform = RandomNodeSplit("train_rest", num_val=num_val, num_test=count - num_train - num_val)
    return _split(labels, transform, seed)


def split_by_class(labels: Tensor, per_class: int, num_val: int, num_test: int, seed: int) -> Split:
    """Draws the same number of training nodes of each class, like the public splits, and the other sets from the rest.

    Args:
        labels: Class of each node, -1 for none. A class may be empty.
        per_class: Number of training nodes of each class that is not empty.
        num_val: Number of validation nodes.
        num_test: Number of test nodes.
        seed: Seed of the random choice.

    Raises:
        UserError: If there are not enough nodes.

    Example:
        >>> masks = split_by_class(torch.arange(100) % 4, per_class=5, num_val=30, num_test=50, seed=0)
        >>> [int(mask.sum()) for mask in masks]
        [20, 30, 50]
    """
    known = labels[labels >= 0]
    sizes = known.bincount()
    sizes = sizes[sizes > 0]
    if sizes.min() < per_class or len(known) - per_class * len(sizes) < num_val + num_test:
        raise UserError(
            f"per_class={per_class}, num_val={num_val} and num_test={num_test} are more than there are: the smallest "
            f"of {len(sizes)} classes has {int(sizes.min())} labelled nodes and all together have {len(known)}. Lower "
            "them."
        )
    transform = RandomNodeSplit("random", num_train_per_class=per_class, num_val=num_val, num_test=num_test)
    return _split(labels, transform, seed)


def _split(labels: Tensor, transform: RandomNodeSplit, seed: int) -> Split:
    known = labels >= 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        split = transform(Data(y=labels[known], num_nodes=int(known.sum())))
    masks = []
    for name in MASKS:
        mask = torch.zeros_like(known)
        mask[known] = split[name]
        if not mask.any():
            raise UserError(f"The split leaves {name} without nodes: change its shares or counts.")
        masks.append(mask)
    return masks[0], masks[1], masks[2]
