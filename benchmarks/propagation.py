"""Time of one propagation along the edges of a graph."""

import statistics
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import scatter

from benchmarks.report import markdown
from benchmarks.timing import interleaved, ratios
from rbp_lightning import SparseMatrix

SIZES = {"Cora": (2708, 13264), "PubMed": (19717, 108365)}


def ways(num_nodes: int, edge_index: Tensor, values: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """Several implementations of the product with the same matrix.

    Args:
        num_nodes: Number of nodes.
        edge_index: Sources and targets, sorted by target, of shape ``[2, num_edges]``.
        values: Weight of each edge.
    """
    source, target = edge_index
    shape = (num_nodes, num_nodes)
    matrix = SparseMatrix(target, source, values, shape)
    csr = torch.sparse_coo_tensor(torch.stack([target, source]), values, shape).coalesce().to_sparse_csr()
    index = EdgeIndex(torch.stack([target, source]), sparse_size=shape, sort_order="row").fill_cache_()
    return {
        "SparseMatrix": lambda x: matrix @ x,
        "torch.sparse_csr @ x": lambda x: csr @ x,
        "EdgeIndex.matmul": lambda x: index.matmul(x, input_value=values),
        "PyG scatter": lambda x: scatter(values[:, None] * x[source], target, dim_size=num_nodes, reduce="sum"),
        "index_add": lambda x: torch.zeros_like(x).index_add(0, target, values[:, None] * x[source]),
    }


def propagation(size: Literal["Cora", "PubMed"] = "Cora", width: PositiveInt = 64, repeats: PositiveInt = 100) -> None:
    """Time of one propagation along the edges of a graph.

    Times the product and its VJP, by ``SparseMatrix`` and by other implementations in turn, on a random graph of the
    size of Cora or PubMed. Prints medians, as multiples of the time of ``SparseMatrix``.

    Args:
        size: The graph whose numbers of nodes and edges are used.
        width: Number of columns of the states.
        repeats: Number of repeats.
    """
    warnings.filterwarnings("ignore", message="Sparse")
    generator = torch.Generator().manual_seed(0)
    num_nodes, num_edges = SIZES[size]
    edge_index = torch.randint(0, num_nodes, (2, num_edges), generator=generator).unique(dim=1)
    edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    values = torch.rand(edge_index.shape[1], generator=generator)
    states = torch.randn(num_nodes, width, generator=generator, requires_grad=True)
    cotangent = torch.randn(num_nodes, width, generator=generator)

    def forward(product: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: product(states.detach())

    def backward(product: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        output = product(states)
        return lambda: torch.autograd.grad(output, states, cotangent, retain_graph=True)

    products = ways(num_nodes, edge_index, values)
    columns = []
    for of in (forward, backward):
        times = interleaved({name: of(product) for name, product in products.items()}, repeats)
        columns.append({name: statistics.median(found) for name, found in ratios(times, "SparseMatrix").items()})
    rows = [[name, *(f"{column[name]:.1f}" for column in columns)] for name in products]
    print(markdown([f"{size}'s size, {width} columns", "product", "VJP"], rows))
