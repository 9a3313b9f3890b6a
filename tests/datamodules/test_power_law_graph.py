"""The power-law graph: degrees, edges, classes, features, and the memory that generating it takes."""

import tracemalloc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.power_law_graph import PowerLawGraph
from rbp_lightning import UserError


@settings(deadline=None, max_examples=30)
@given(
    nodes=st.integers(20, 300),
    degree=st.floats(0.5, 4),
    exponent=st.floats(2.1, 4),
    homophily=st.floats(0, 1),
    classes=st.integers(1, 4),
    seed=st.integers(0, 2**31),
)
def test_the_graph_is_undirected_and_simple_with_the_given_number_of_edges(
    nodes: int, degree: float, exponent: float, homophily: float, classes: int, seed: int
) -> None:
    graph = PowerLawGraph(nodes, degree, exponent, homophily, classes, seed=seed)[0]
    edges = set(map(tuple, graph.edge_index.T.tolist()))
    assert len(edges) == graph.num_edges == 2 * round(nodes * degree / 2)
    assert all((target, source) in edges and source != target for source, target in edges)
    assert int(graph.edge_index.min()) >= 0
    assert int(graph.edge_index.max()) < nodes == len(graph.x) == len(graph.y)


@pytest.mark.parametrize("exponent", [2.3, 3.0])
def test_the_tail_of_the_degrees_is_a_power_law(exponent: float) -> None:
    graph = PowerLawGraph(40_000, 10.0, exponent, num_features=1)[0]
    degrees = torch.bincount(graph.edge_index[0], minlength=graph.num_nodes)
    low, high = 16, 64  # above the average degree and below the cut-off, the square root of 400,000
    shares = [(degrees >= degree).double().mean() for degree in (low, high)]
    slope = torch.log(shares[0] / shares[1]) / torch.log(torch.tensor(high / low))
    assert float(slope) == pytest.approx(exponent - 1, abs=0.25)
    assert 300 < int(degrees.max()) < 900


def test_homophily_and_class_means_have_their_values() -> None:
    graph = PowerLawGraph(20_000, 10.0, homophily=0.6, num_classes=5, num_features=8, signal=3.0)[0]
    source, target = graph.edge_index
    same = (graph.y[source] == graph.y[target]).double().mean()
    assert float(same) == pytest.approx(0.6 + 0.4 / 5, abs=0.03)
    means = torch.stack([graph.x[graph.y == label].mean(0) for label in range(5)])
    assert torch.allclose(means.norm(dim=1), torch.tensor(3.0), atol=0.2)
    assert torch.allclose((graph.x - means[graph.y]).std(0), torch.tensor(1.0), atol=0.05)


def test_the_graph_depends_only_on_the_seed() -> None:
    graphs = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)
        state = torch.get_rng_state()
        graphs.append(PowerLawGraph(500, seed=seed)[0])
        assert torch.equal(torch.get_rng_state(), state)
    for name in ("x", "edge_index", "y"):
        assert torch.equal(graphs[0][name], graphs[1][name])
        assert not torch.equal(graphs[0][name], graphs[2][name])


def test_memory_grows_linearly_with_the_graph() -> None:
    peaks = []
    for nodes in (10_000, 40_000):
        tracemalloc.start()
        PowerLawGraph(nodes, num_features=4)[0]
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 4.4 * peaks[0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_nodes": 1}, "num_nodes=1"),
        ({"average_degree": 0.0}, "average_degree=0"),
        ({"num_nodes": 10, "average_degree": 8.0}, "average_degree=8.0 makes 40 edges of 10 nodes"),
        ({"num_nodes": 10, "average_degree": 0.01}, "average_degree=0.01 makes 0 edges"),
        ({"exponent": 2.0}, "exponent=2"),
        ({"homophily": 1.5}, "homophily=1.5"),
        ({"num_classes": 0}, "num_classes=0"),
        ({"num_features": 0}, "num_features=0"),
        ({"signal": -1.0}, "signal=-1"),
        ({"seed": -1}, "seed=-1"),
    ],
)
def test_invalid_arguments_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=f"^PowerLawGraph: {message}"):
        PowerLawGraph(**arguments)
