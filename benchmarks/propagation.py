"""Time of one propagation along the edges of a graph: ``python -m benchmarks.propagation --help``.

Compares the product and its VJP by ``SparseMatrix`` with other ways to write them, side by side in one process, on a
random graph of Cora's or PubMed's size, and prints times as multiples of ``SparseMatrix``'s.
"""

import argparse
import statistics
import time
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch_geometric import EdgeIndex
from torch_geometric.utils import scatter

from rbp_lightning import SparseMatrix

SIZES = {"Cora": (2708, 13264), "PubMed": (19717, 108365)}


def ways(num_nodes: int, edge_index: Tensor, values: Tensor) -> dict[str, Callable[[Tensor], Tensor]]:
    """The product with the same matrix, written in several ways.

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


def seconds(run: Callable[[], object], repeats: int) -> float:
    """Median time of a call, after one to warm up."""
    run()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        run()
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--size", choices=SIZES, default="Cora", help="whose numbers of nodes and edges to take")
    parser.add_argument("--width", type=int, default=64, help="number of columns of the states")
    parser.add_argument("--repeats", type=int, default=100, help="calls to take the median of")
    options = parser.parse_args()
    warnings.filterwarnings("ignore", message="Sparse")

    generator = torch.Generator().manual_seed(0)
    num_nodes, num_edges = SIZES[options.size]
    edge_index = torch.randint(0, num_nodes, (2, num_edges), generator=generator).unique(dim=1)
    edge_index = edge_index[:, edge_index[1].argsort(stable=True)]
    values = torch.rand(edge_index.shape[1], generator=generator)
    states = torch.randn(num_nodes, options.width, generator=generator, requires_grad=True)
    cotangent = torch.randn(num_nodes, options.width, generator=generator)

    found: dict[str, tuple[float, float]] = {}
    for name, product in ways(num_nodes, edge_index, values).items():
        output = product(states)
        forward = seconds(lambda product=product: product(states.detach()), options.repeats)
        backward = seconds(
            lambda output=output: torch.autograd.grad(output, states, cotangent, retain_graph=True),
            options.repeats,
        )
        found[name] = forward, backward
    print(f"| {options.size}'s size, {options.width} columns | product | VJP |\n|---|---|---|")
    for name, times in found.items():
        ratios = [f"{one / own:.1f}" for one, own in zip(times, found["SparseMatrix"], strict=True)]
        print(f"| {name} | {' | '.join(ratios)} |")


if __name__ == "__main__":
    main()
