"""CitationGraph: real files, splits, parts, devices and refused graphs."""

from functools import partial

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data, HeteroData
from torch_geometric.datasets import KarateClub

from datamodules import CitationGraph
from datamodules.node_splits import split_by_class, split_by_ratio
from rbp_lightning import UserError
from tests.graphs import RandomGraph, WithoutLabels, random_graph

FACTS = {
    "Cora": (2708, 10556, 1433, 7, 140),
    "CiteSeer": (3327, 9104, 3703, 6, 120),
    "PubMed": (19717, 88648, 500, 3, 60),
}
PER_CLASS = {
    "Cora": [351, 217, 418, 818, 426, 298, 180],
    "CiteSeer": [249, 590, 668, 701, 596, 508],
    "PubMed": [4103, 7739, 7875],
}


@pytest.mark.parametrize("name", FACTS)
def test_the_published_graphs_have_their_known_sizes(name, data_dir) -> None:
    data = CitationGraph(name.lower(), data_dir=data_dir)
    data.prepare_data()
    data.setup("fit")
    graph, (nodes, edges, features, classes, train) = data.graph, FACTS[name]
    assert (graph.num_nodes, graph.num_edges, graph.num_features) == (nodes, edges, features)
    assert torch.bincount(graph.y[graph.y >= 0]).tolist() == PER_CLASS[name]
    assert int(graph.y.max()) + 1 == classes
    assert [int(graph[mask].sum()) for mask in ("train_mask", "val_mask", "test_mask")] == [train, 500, 1000]
    unlabelled = graph.y < 0
    assert int(unlabelled.sum()) == (15 if name == "CiteSeer" else 0)
    assert not graph.x[unlabelled].any()
    assert not (unlabelled & (graph.train_mask | graph.val_mask | graph.test_mask)).any()
    sums = graph.x.sum(1)
    torch.testing.assert_close(sums[sums > 0], torch.ones(int((sums > 0).sum())))
    assert graph.is_undirected()
    assert not graph.has_self_loops()


@pytest.mark.parametrize(("name", "components"), [("Cora", 64), ("PubMed", 16)])
def test_the_paper_s_split_and_features_are_reproduced(name, components, data_dir) -> None:
    arguments = {"split": "ratio", "pca": components, "normalize_features": False, "data_dir": data_dir}
    graphs = []
    for seed in (0, 0, 1):
        data = CitationGraph(name, split_seed=seed, **arguments)
        data.setup("fit")
        graphs.append(data.graph)
    nodes = graphs[0].num_nodes
    assert graphs[0].x.shape == (nodes, components)
    counts = [int(graphs[0][mask].sum()) for mask in ("train_mask", "val_mask", "test_mask")]
    assert counts == [round(0.01 * nodes), round(0.49 * nodes), nodes - round(0.01 * nodes) - round(0.49 * nodes)]
    assert torch.equal(graphs[0].train_mask, graphs[1].train_mask)
    assert not torch.equal(graphs[0].train_mask, graphs[2].train_mask)


@st.composite
def labels(draw: st.DrawFn) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    return torch.randint(-1, draw(st.integers(1, 4)), (draw(st.integers(60, 120)),), generator=generator)


def check_split(split: tuple, y: torch.Tensor) -> None:
    """Checks that the masks are disjoint, nonempty and without unlabelled nodes."""
    total = torch.stack(split).sum(0)
    assert total.max() <= 1
    assert not total[y < 0].any()
    assert all(mask.any() for mask in split)


@settings(deadline=None)
@given(labels=labels(), train=st.floats(0.1, 0.4), val=st.floats(0.1, 0.4), seed=st.integers(0, 1000))
def test_a_split_by_ratio_has_its_sizes_and_follows_the_seed(labels, train, val, seed) -> None:
    state = torch.get_rng_state()
    split = split_by_ratio(labels, train, val, seed)
    assert torch.equal(state, torch.get_rng_state())
    check_split(split, labels)
    known = int((labels >= 0).sum())
    assert sum(int(mask.sum()) for mask in split) == known
    assert [int(mask.sum()) for mask in split[:2]] == [round(train * known), round(val * known)]
    again, other = split_by_ratio(labels, train, val, seed), split_by_ratio(labels, train, val, seed + 1)
    assert all(torch.equal(one, two) for one, two in zip(split, again, strict=True))
    assert not all(torch.equal(one, two) for one, two in zip(split, other, strict=True))


@settings(deadline=None)
@given(labels=labels(), per_class=st.integers(1, 4), num_val=st.integers(1, 10), seed=st.integers(0, 1000))
def test_a_split_by_class_has_its_sizes_and_follows_the_seed(labels, per_class, num_val, seed) -> None:
    split = split_by_class(labels, per_class, num_val, 12, seed)
    check_split(split, labels)
    classes = torch.bincount(labels[labels >= 0])
    assert torch.bincount(labels[split[0]], minlength=len(classes)).tolist() == [per_class] * len(classes)
    assert (int(split[1].sum()), int(split[2].sum())) == (num_val, 12)
    again = split_by_class(labels, per_class, num_val, 12, seed)
    assert all(torch.equal(one, two) for one, two in zip(split, again, strict=True))


def test_a_split_with_more_nodes_than_there_are_is_refused() -> None:
    y = torch.tensor([0, 0, 0, 1, 1, -1])
    with pytest.raises(UserError, match=r"per_class=3.* 2 labelled nodes"):
        split_by_class(y, 3, 1, 1, 0)
    with pytest.raises(UserError, match="num_val=2 and num_test=2"):
        split_by_class(y, 1, 2, 2, 0)
    with pytest.raises(UserError, match="train_mask"):
        split_by_ratio(y, 0.01, 0.5, 0)


@pytest.mark.parametrize("classes", [(0, 2), (3, 7, 9), (5,)])
def test_classes_without_nodes_are_allowed(classes) -> None:
    y = torch.tensor(classes).repeat(20)
    for split in (split_by_class(y, 4, 3, 5, 0), split_by_ratio(y, 0.2, 0.3, 0)):
        check_split(split, y)
    train, val, test = split_by_class(y, 4, 3, 5, 0)
    assert y[train].unique(return_counts=True)[1].tolist() == [4] * len(classes)
    assert (int(val.sum()), int(test.sum())) == (3, 5)
    data = CitationGraph(
        dataset=partial(ChangedGraph, y=lambda y: 2 * y), split="per_class", per_class=2, num_val=5, num_test=5
    )
    data.setup("fit")
    assert int(data.graph.train_mask.sum()) == 6


# --- a user's own graph


def test_a_user_s_dataset_is_used_as_it_is() -> None:
    data = CitationGraph(dataset=partial(RandomGraph, num_nodes=12), normalize_features=False)
    data.setup("fit")
    expected = random_graph(0, 12, 5, edges=0.2)
    for name in ("x", "edge_index", "y", "train_mask", "val_mask", "test_mask"):
        assert torch.equal(data.graph[name], expected[name])


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (partial(RandomGraph, num_graphs=2), "RandomGraph holds 2 graphs"),
        (WithoutLabels, "WithoutLabels: y is missing"),
        (KarateClub, "has no val_mask: set split to ratio or per_class"),
    ],
)
def test_an_unusable_dataset_is_refused(dataset, message) -> None:
    with pytest.raises(UserError, match=message):
        CitationGraph(dataset=dataset).setup("fit")


def test_the_seed_selects_one_of_several_public_splits() -> None:
    class Splits(RandomGraph):
        def get(self, idx: int):
            graph = super().get(idx)
            for name in ("train_mask", "val_mask", "test_mask"):
                graph[name] = torch.stack([graph[name], graph[name].roll(1)], dim=1)
            return graph

    for seed in (0, 1, 2):
        data = CitationGraph(dataset=Splits, split_seed=seed)
        data.setup("fit")
        assert torch.equal(data.graph.train_mask, random_graph(0, 30, 5, edges=0.2).train_mask.roll(seed % 2))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"name": "Citeser"}, "name='Citeser'.*Cora, CiteSeer, PubMed"),
        ({"split": "random"}, "split='random'.*public, ratio, per_class"),
        ({"train_ratio": 0.0}, r"train_ratio=0\.0"),
        ({"train_ratio": 0.5, "val_ratio": 0.5}, "leave no test nodes"),
        ({"per_class": 0}, "per_class=0"),
        ({"num_val": 0}, "num_val=0"),
        ({"num_test": -1}, "num_test=-1"),
        ({"split_seed": -1}, "split_seed=-1"),
        ({"pca": 0}, "pca=0"),
        ({"num_parts": 0}, "num_parts=0"),
    ],
)
def test_invalid_arguments_are_refused(arguments, message) -> None:
    with pytest.raises(UserError, match=message):
        CitationGraph(**arguments)


def test_too_many_parts_or_components_are_refused() -> None:
    with pytest.raises(UserError, match=r"num_parts=31.* 30 nodes"):
        CitationGraph(dataset=RandomGraph, num_parts=31).setup("fit")
    with pytest.raises(UserError, match="pca=5 must be below"):
        CitationGraph(dataset=RandomGraph, pca=5).setup("fit")


# --- parts of a graph


def test_the_parts_of_an_epoch_hold_every_node_once_with_the_inner_edges() -> None:
    data = CitationGraph(dataset=partial(RandomGraph, num_nodes=31), num_parts=3)
    data.setup("fit")
    data.graph.x = torch.arange(31.0)[:, None]  # the number of each node
    loader, epochs = data.train_dataloader(), []
    for epoch in (0, 1, 0):
        loader.sampler.set_epoch(epoch)  # as Lightning does
        parts = list(loader)
        assert len(parts) == 3
        numbers = [part.x[:, 0].long() for part in parts]
        assert sorted(torch.cat(numbers).tolist()) == list(range(31))
        for part, nodes in zip(parts, numbers, strict=True):
            inside = torch.isin(data.graph.edge_index, nodes).all(0)
            assert part.num_edges == int(inside.sum())
            assert torch.equal(part.train_mask, data.graph.train_mask[nodes])
        epochs.append(torch.cat(numbers).tolist())
    assert epochs[0] == epochs[2] != epochs[1]


def test_evaluation_sees_the_whole_graph() -> None:
    data = CitationGraph(dataset=RandomGraph, num_parts=3)
    data.setup("fit")
    for loader in (data.val_dataloader(), data.test_dataloader(), data.predict_dataloader()):
        (graph,) = loader
        assert graph is data.graph


def test_a_graph_is_moved_once_and_not_as_an_inference_tensor() -> None:
    data = CitationGraph(dataset=RandomGraph)
    data.setup("fit")
    (graph,) = data.val_dataloader()
    with torch.inference_mode():
        moved = data.transfer_batch_to_device(graph, torch.device("meta"), 0)
    assert moved.x.is_meta
    assert not moved.x.is_inference()
    x = moved.x
    (again,) = data.train_dataloader()
    assert data.transfer_batch_to_device(again, torch.device("meta"), 0).x is x


def test_parts_are_moved_and_the_whole_graph_is_not() -> None:
    data = CitationGraph(dataset=RandomGraph, num_parts=2)
    data.setup("fit")
    loader = data.train_dataloader()
    for _ in range(2):
        for part in loader:
            assert data.transfer_batch_to_device(part, torch.device("meta"), 0).x.is_meta
    assert not data.graph.x.is_meta


def test_teardown_moves_the_graph_to_the_cpu(monkeypatch) -> None:
    data = CitationGraph(dataset=RandomGraph)
    data.teardown("fit")  # may come before setup, after an error
    data.setup("fit")
    x = data.graph.x
    data.teardown("fit")
    assert data.graph.x is x
    moves = []
    monkeypatch.setattr(type(data.graph), "cpu", lambda graph: moves.append(graph))
    data.teardown("fit")
    assert moves == [data.graph]


def test_the_user_s_graph_is_not_changed() -> None:
    graph = random_graph(0, 30, 5, edges=0.2)
    before = graph.clone()
    data = CitationGraph(dataset=lambda: [graph], split="per_class", per_class=2, num_val=5, num_test=5)
    data.setup("fit")
    data.transfer_batch_to_device(data.graph, torch.device("meta"), 0)
    assert graph.keys() == before.keys()
    assert all(torch.equal(graph[name], before[name]) for name in before.keys())  # noqa: SIM118


class ChangedGraph(RandomGraph):
    """A random graph with some attributes changed by functions."""

    def __init__(self, **changes) -> None:
        super().__init__()
        self.changes = changes

    def get(self, idx: int):
        graph = super().get(idx)
        for name, change in self.changes.items():
            graph[name] = change(graph[name])
        return graph


@pytest.mark.parametrize(
    "changes",
    [
        {"x": lambda x: x.double()},
        {"x": lambda x: (10 * x).long()},
        {"x": lambda x: x > 0.5},
        {"x": lambda x: (x > 0.5).to_sparse()},
        {"y": lambda y: y.int()},
        {"y": lambda y: y.to(torch.uint8)},
        {"edge_index": lambda edges: edges.int()},
        {"edge_index": lambda edges: edges[:, :0]},
    ],
)
def test_other_dtypes_and_layouts_are_converted(changes) -> None:
    data = CitationGraph(dataset=partial(ChangedGraph, **changes))
    data.setup("fit")
    graph = data.graph
    assert (graph.x.dtype, graph.y.dtype, graph.edge_index.dtype) == (torch.float32, torch.int64, torch.int64)
    assert graph.x.layout == torch.strided


EDGES = r"pass \[2, num_edges\]"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"x": lambda x: x[:, 0]}, r"x has the shape \[30\]: pass \[num_nodes, num_features\]"),
        ({"x": lambda x: x.numpy()}, "x is a ndarray: pass a tensor of shape"),
        ({"x": lambda x: x * torch.nan}, "x holds NaN, infinity or complex"),
        ({"x": lambda x: x / 0}, "x holds NaN, infinity or complex"),
        ({"x": lambda x: x.cfloat()}, "x holds NaN, infinity or complex"),
        ({"x": lambda x: x[:-1]}, r"edge_index holds node 29, but the 29 nodes of x|y has the shape \[30\]"),
        ({"y": lambda y: y[:-1]}, r"y has the shape \[29\]: pass \[30\]"),
        ({"y": lambda y: y[:, None]}, r"y has the shape \[30, 1\]: pass \[30\]"),
        ({"y": lambda y: y.float()}, r"y has the dtype torch\.float32: convert it to integers"),
        ({"y": lambda y: y > 0}, r"y has the dtype torch\.bool: convert it to integers"),
        ({"y": lambda y: y.tolist()}, "y is a list: pass a tensor"),
        ({"y": lambda y: y * 0 - 1}, "no node has a label"),
        ({"edge_index": lambda edges: edges.T}, rf"edge_index has the shape \[\d+, 2\]: {EDGES}"),
        ({"edge_index": lambda edges: edges.flatten()}, rf"edge_index has the shape \[\d+\]: {EDGES}"),
        ({"edge_index": lambda edges: edges[:, :0].flatten()}, rf"edge_index has the shape \[0\]: {EDGES}"),
        ({"edge_index": lambda edges: torch.cat([edges, edges])}, rf"edge_index has the shape \[4, \d+\]: {EDGES}"),
        ({"edge_index": lambda edges: edges.float()}, r"edge_index has the dtype torch\.float32: convert it to int"),
        ({"edge_index": lambda edges: torch.empty(2, 0)}, r"edge_index has the dtype torch\.float32: convert it to"),
        ({"edge_index": lambda edges: edges > 0}, r"edge_index has the dtype torch\.bool"),
        ({"edge_index": lambda edges: edges.tolist()}, "edge_index is a list: pass a tensor"),
        ({"edge_index": lambda edges: edges + 1}, "holds node 30, .*0 to 29: renumber"),
        ({"edge_index": lambda edges: edges - 1}, "edge_index holds node -1, but"),
        ({"val_mask": lambda mask: mask.nonzero()[:, 0]}, r"val_mask has the shape \[10\]: pass \[30\]"),
        ({"val_mask": lambda mask: mask.int()}, r"val_mask has the dtype torch\.int32: pass a bool"),
        ({"val_mask": lambda mask: mask.tolist()}, "val_mask is a list: pass a tensor"),
        ({"val_mask": lambda mask: mask[None]}, r"val_mask has the shape \[1\]: pass \[30\]"),
        ({"val_mask": lambda mask: mask[:, None, None]}, r"val_mask has the shape \[30, 1, 1\]: pass \[30\]"),
        ({"val_mask": lambda mask: mask[:, None][:, :0]}, r"val_mask has the shape \[30, 0\]: pass \[30\]"),
        ({"train_mask": lambda mask: mask & False}, "No node of train_mask has a label"),
    ],
)
def test_a_malformed_graph_is_refused(changes, message) -> None:
    with pytest.raises(UserError, match=message):
        CitationGraph(dataset=partial(ChangedGraph, **changes)).setup("fit")


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (random_graph, "dataset makes a Data"),
        (lambda: None, "dataset makes a NoneType"),
        (lambda: [], "list holds 0 graphs"),
        (lambda: [HeteroData()], "holds a HeteroData"),
        (lambda: [Data(x=torch.ones(3, 2), y=torch.arange(3), num_nodes=4)], "x has 3 rows, but num_nodes=4"),
        (lambda: [Data(x=torch.ones(3, 2), y=torch.arange(3))], "list: edge_index is missing"),
    ],
)
def test_anything_but_a_dataset_of_one_graph_is_refused(dataset, message) -> None:
    with pytest.raises(UserError, match=message):
        CitationGraph(dataset=dataset).setup("fit")


def test_an_object_in_place_of_a_function_is_refused() -> None:
    with pytest.raises(UserError, match="dataset must be a function"):
        CitationGraph(dataset=KarateClub())


def test_the_order_of_parts_follows_the_seed() -> None:
    orders = []
    for seed in (0, 0, 1):
        data = CitationGraph(dataset=RandomGraph, num_parts=10, split_seed=seed)
        data.setup("fit")
        orders.append([int(part.x.sum() * 1e4) for part in data.train_dataloader()])
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == sorted(orders[2])
