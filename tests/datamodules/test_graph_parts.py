"""Partitions of a graph: every node once, balanced, with few cut edges."""

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules.graph_parts import cut, random_parts, spectral_parts
from datamodules.planetoid_files import load_planetoid
from tests.graphs import random_graph


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), nodes=st.integers(1, 40), edges=st.floats(0, 1), data=st.data())
def test_spectral_parts_hold_every_node_once_and_are_balanced(seed, nodes, edges, data) -> None:
    count = data.draw(st.integers(1, nodes))
    edge_index = random_graph(seed, nodes, edges=edges).edge_index
    parts = spectral_parts(edge_index, nodes, count)
    assert len(parts) == count
    assert sorted(torch.cat(parts).tolist()) == list(range(nodes))
    sizes = [len(part) for part in parts]
    assert min(sizes) >= 1
    if count & (count - 1) == 0:  # for other counts, sizes are rounded at each bisection
        assert max(sizes) - min(sizes) <= 1
    again = spectral_parts(edge_index, nodes, count)
    assert all(torch.equal(one, other) for one, other in zip(parts, again, strict=True))


@settings(deadline=None)
@given(seed=st.integers(0, 2**31), nodes=st.integers(1, 40), edges=st.floats(0, 1), data=st.data())
def test_random_parts_are_balanced_and_cut_into_their_subgraphs(seed, nodes, edges, data) -> None:
    count = data.draw(st.integers(1, nodes))
    graph = random_graph(seed, nodes, edges=edges)
    parts = random_parts(nodes, count, seed)
    assert sorted(torch.cat(parts).tolist()) == list(range(nodes))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
    for part, own in zip(cut(graph, parts), parts, strict=True):
        expected = graph.subgraph(own)
        assert part.whole is graph
        assert torch.equal(part.nodes, own)
        for name in ("x", "y", "train_mask", "val_mask", "test_mask", "edge_index"):
            assert torch.equal(part[name], expected[name])


def test_bisection_cuts_the_bridge_between_two_cliques() -> None:
    numbers = torch.randperm(20, generator=torch.Generator().manual_seed(0))
    cliques = [torch.combinations(numbers[:10]).T, torch.combinations(numbers[10:]).T]
    bridge = torch.stack([numbers[:1], numbers[19:]])
    parts = spectral_parts(torch.cat([*cliques, bridge], dim=1), 20, 2)
    found = {frozenset(part.tolist()) for part in parts}
    assert found == {frozenset(numbers[:10].tolist()), frozenset(numbers[10:].tolist())}


def test_bisecting_pubmed_cuts_few_edges(data_dir) -> None:
    graph = load_planetoid("PubMed", data_dir)
    parts = spectral_parts(graph.edge_index, graph.num_nodes, 2)
    assert [len(part) for part in parts] == [9858, 9859]
    inside = sum(int(graph.subgraph(part).num_edges) for part in parts)
    assert inside > 0.9 * graph.num_edges  # random halves would keep half of them
