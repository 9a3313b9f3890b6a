"""Random splits of a graph's nodes into training, validation and test."""

import torch
from torch import Tensor
from torch_geometric.data import Data
from torch_geometric.transforms import RandomNodeSplit

from rbp_lightning.errors import UserError

Split = tuple[Tensor, Tensor, Tensor]
"""Masks of the training, validation and test nodes, bool, of shape [num_nodes]."""


def split_by_ratio(labels: Tensor, train: float, val: float, seed: int) -> Split:
    """Splits the labelled nodes by shares; the test nodes are the rest (paper, section 4.2).

    Args:
        labels: Class of each node, -1 where there is none.
        train: Share of the training nodes, rounded to whole nodes.
        val: Share of the validation nodes, rounded to whole nodes.
        seed: Seed of the choice.

    Raises:
        UserError: If a set is left without nodes.

    Example:
        >>> [int(mask.sum()) for mask in split_by_ratio(torch.zeros(100), train=0.01, val=0.49, seed=0)]
        [1, 49, 50]
    """
    count = int((labels >= 0).sum())
    num_train, num_val = round(train * count), round(val * count)
    # What RandomNodeSplit calls the rest are the training nodes.
    transform = RandomNodeSplit("train_rest", num_val=num_val, num_test=count - num_train - num_val)
    return _split(labels, transform, seed)


def split_by_class(labels: Tensor, per_class: int, num_val: int, num_test: int, seed: int) -> Split:
    """Takes as many training nodes of each class, as the public splits do, and the others from what is left.

    Args:
        labels: Class of each node, -1 where there is none.
        per_class: Number of training nodes of each class.
        num_val: Number of validation nodes.
        num_test: Number of test nodes.
        seed: Seed of the choice.

    Raises:
        UserError: If there are not enough nodes.

    Example:
        >>> masks = split_by_class(torch.arange(100) % 4, per_class=5, num_val=30, num_test=50, seed=0)
        >>> [int(mask.sum()) for mask in masks]
        [20, 30, 50]
    """
    known = labels[labels >= 0]
    smallest = int(torch.bincount(known).min())
    left = len(known) - per_class * len(torch.bincount(known))
    if smallest < per_class or left < num_val + num_test:
        raise UserError(
            f"per_class={per_class}, num_val={num_val} and num_test={num_test} are more than there are: the smallest "
            f"class has {smallest} labelled nodes and all together {len(known)}. Lower them."
        )
    transform = RandomNodeSplit("random", num_train_per_class=per_class, num_val=num_val, num_test=num_test)
    return _split(labels, transform, seed)


def _split(labels: Tensor, transform: RandomNodeSplit, seed: int) -> Split:
    known = labels >= 0
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        split = transform(Data(y=labels[known], num_nodes=int(known.sum())))
    masks = []
    for name in ("train_mask", "val_mask", "test_mask"):
        mask = torch.zeros_like(known)
        mask[known] = split[name]
        if not mask.any():
            raise UserError(f"The split leaves {name} without nodes: change its shares or counts.")
        masks.append(mask)
    return masks[0], masks[1], masks[2]
