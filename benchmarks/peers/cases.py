"""The networks that methods are compared on, by name."""

from typing import Literal, TypeAlias, get_args

import torch

from benchmarks.peers.cora import cora
from benchmarks.peers.graphs import GRAPH_NETWORKS
from benchmarks.peers.networks import NETWORKS, Case

CaseName: TypeAlias = Literal[
    "tanh, radius 0.38",
    "tanh, radius 0.93",
    "tanh, radius 0.99",
    "Hopfield network",
    "graph network on Cora",
    "gated network on Cora",
    "convolution",
    "training by SGD",
]

ALL_CASES: list[CaseName] = list(get_args(CaseName))


def make_case(name: CaseName, dtype: torch.dtype = torch.float32) -> Case:
    """Makes a case on PyTorch's default device.

    Args:
        name: Its name.
        dtype: Type of its numbers.

    Raises:
        UserError: If the files of its data set are missing.
    """
    if name in GRAPH_NETWORKS:
        return GRAPH_NETWORKS[name](cora(name), dtype)
    return NETWORKS[name](dtype)
