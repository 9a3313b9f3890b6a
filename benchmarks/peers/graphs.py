"""Graph networks for the comparison; of this project they only use ``SparseMatrix``."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call

from benchmarks.peers.networks import Case, normal_numbers
from rbp_lightning import SparseMatrix


@dataclass(frozen=True)
class Graph:
    """Features of the nodes, and the matrix that sums the neighbours' states.

    Attributes:
        features: Of shape ``[num_nodes, num_features]``.
        edge_index: Sources and targets, of shape ``[2, num_edges]``.
        weights: Weight of each edge, float64.
    """

    features: Tensor
    edge_index: Tensor
    weights: Tensor

    def adjacency(self, dtype: torch.dtype) -> SparseMatrix:
        """The matrix; a row is a target."""
        source, target = self.edge_index.to(torch.get_default_device())
        size = len(self.features)
        return SparseMatrix(target, source, self.weights.to(source.device, dtype), (size, size))

    def edges(self, dtype: torch.dtype) -> dict[str, Tensor]:
        """The entries of the matrix by name, sorted by row."""
        order = self.edge_index[1].argsort(stable=True)
        source, target = self.edge_index[:, order]
        return {"target": target, "source": source, "weight": self.weights[order].to(dtype)}


def contractive(graph: Graph, dtype: torch.dtype) -> Case:
    """A contractive graph network with 64 units: Z <- relu(A Z W) + X U, where W has norm 0.9."""
    features = SparseMatrix.from_dense(graph.features.to(torch.get_default_device(), dtype))
    words = graph.features.to(dtype).to_sparse()
    row, column = words.indices()
    adjacency = graph.adjacency(dtype)
    randn = normal_numbers(0, dtype)
    weight = 0.9 * torch.linalg.qr(randn(64, 64).double())[0].to(dtype)
    inject = 0.3 * randn(graph.features.shape[1], 64)
    return Case(
        [weight.requires_grad_(), inject.requires_grad_()],
        lambda weight, inject: (weight, features @ inject),
        lambda state, weight, drive: torch.relu(adjacency @ (state @ weight)) + drive,
        torch.zeros(len(graph.features), 64, dtype=dtype),
        batch_dims=0,
        constants=graph.edges(dtype) | {"row": row, "column": column, "value": words.values()},
    )


def gated(graph: Graph, dtype: torch.dtype) -> Case:
    """The paper's gated network before training: Z <- GRU(A Z + U(X), Z), with 64 features and 64 units."""
    features = graph.features.to(torch.get_default_device(), dtype)
    adjacency = graph.adjacency(dtype)
    torch.manual_seed(0)
    with torch.device("cpu"):  # the same numbers on every device
        inject, cell = nn.Linear(64, 64), nn.GRUCell(64, 64)
        nn.init.xavier_uniform_(inject.weight)
        nn.init.zeros_(inject.bias)
    for module in (inject, cell):
        module.to(torch.get_default_device(), dtype)
    names = [name for name, _ in cell.named_parameters()]

    def step(state: Tensor, drive: Tensor, *weights: Tensor) -> Tensor:
        read = adjacency @ state + drive
        found: Tensor = functional_call(cell, dict(zip(names, weights, strict=True)), (read, state))
        return found

    return Case(
        [*inject.parameters(), *cell.parameters()],
        lambda weight, bias, *weights: (features @ weight.T + bias, *weights),
        step,
        torch.zeros(len(graph.features), 64, dtype=dtype),
        batch_dims=0,
        constants=graph.edges(dtype) | {"features": features},
    )


GRAPH_NETWORKS: dict[str, Callable[[Graph, torch.dtype], Case]] = {
    "graph network on Cora": contractive,
    "gated network on Cora": gated,
}
