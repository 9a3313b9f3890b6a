"""Propagation cells: gradients against the dense solution, contraction, and adjacency matrices."""

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_geometric.data import Data
from torch_geometric.nn import SimpleConv

from models import ContractiveCell, GRUPropagation, PageRankCell, PropagationCell
from models.propagation.adjacency import adjacency_matrix
from models.propagation.prepared_graph import PreparedGraph, PrepareGraph
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, NeumannRBP, Picard, SparseMatrix, UserError
from tests.cells import Cell, dense, loss_of, relative_error
from tests.graphs import random_graph

SIZES = {"num_features": 5, "num_classes": 3, "num_hidden": 4}
MAKERS = {
    "page_rank": lambda: PageRankCell(**SIZES, alpha=0.3, dropout=0.0),
    "page_rank_learned": lambda: PageRankCell(**SIZES, alpha=0.3, learn_alpha=True, dropout=0.0),
    "contractive_spectral": lambda: ContractiveCell(**SIZES, bound=0.7, activation="tanh", dropout=0.0),
    "contractive_frobenius": lambda: ContractiveCell(**SIZES, norm="frobenius", bound=0.7, dropout=0.0),
    "contractive_infinity": lambda: ContractiveCell(**SIZES, norm="infinity", bound=0.7, dropout=0.0),
    "gru": lambda: GRUPropagation(**SIZES),
    "gru_sum": lambda: GRUPropagation(**SIZES, aggregation="sum"),
}
SOLVER = Picard(max_steps=2000, tol=1e-13)
ESTIMATORS = [
    BPTT(SOLVER),
    TBPTT(300, SOLVER),
    RBP(300, 1e-12, solver=SOLVER),
    NeumannRBP(300, SOLVER),
    CGRBP(300, 1e-12, solver=SOLVER),
]


def cell_of(name: str, seed: int = 0, graph: Data | None = None) -> Cell:
    """The update of a propagation cell on a graph, in float64, without its readout."""
    torch.manual_seed(seed)
    module = MAKERS[name]().double()
    if name.startswith("gru"):
        with torch.no_grad():  # small enough to converge
            module.gru.weight_hh.mul_(0.3)
            module.gru.weight_ih.mul_(0.2 if name == "gru" else 0.05)
    graph = random_graph(seed) if graph is None else graph
    graph.x = graph.x.double().requires_grad_()
    prepared = PreparedGraph(graph, module.aggregation, torch.float64)
    assert prepared.features is graph.x
    with torch.no_grad():
        _, start = module.start(graph.x, prepared.adjacency)

    # Evaluated anew in each step, since the references differentiate with respect to the tensors.
    def update(state: torch.Tensor) -> torch.Tensor:
        return module.start(graph.x, prepared.adjacency)[0](state)

    unused = {"readout.weight", "readout.bias"}
    parameters = [parameter for name, parameter in module.named_parameters() if name not in unused]
    return Cell(update, torch.zeros_like(start), [graph.x, *parameters], batch_dims=0)


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda estimator: type(estimator).__name__)
@pytest.mark.parametrize("name", MAKERS)
def test_every_estimator_gives_the_dense_gradient_of_every_cell(name, estimator) -> None:
    cell = cell_of(name)
    found = estimator(cell.update, cell.start)
    assert found.converged
    gradients = torch.autograd.grad(loss_of(found.state), cell.tensors)
    assert relative_error(list(gradients), dense(cell).gradients) < 1e-8


@settings(deadline=None, max_examples=20)
@given(seed=st.integers(0, 2**31), edges=st.floats(0, 1), alpha=st.floats(0.05, 1.0), learned=st.booleans())
def test_the_page_rank_cell_contracts_by_one_minus_alpha(seed, edges, alpha, learned) -> None:
    graph = random_graph(seed, edges=edges)
    cell = PageRankCell(**SIZES, alpha=alpha, learn_alpha=learned and alpha < 1, dropout=0.0)
    update, state = cell.start(graph.x, PreparedGraph(graph, "symmetric").adjacency)
    with torch.no_grad():
        other = state + torch.randn(state.shape, generator=torch.Generator().manual_seed(seed))
        change = (update(state) - update(other)).norm()
        assert change <= (1 - alpha) * (state - other).norm() + 1e-5


@settings(deadline=None, max_examples=30)
@given(
    seed=st.integers(0, 2**31),
    edges=st.floats(0, 1),
    bound=st.floats(0.05, 0.99),
    norm=st.sampled_from(["spectral", "frobenius", "infinity"]),
    activation=st.sampled_from(["relu", "tanh"]),
)
def test_the_contractive_cell_has_a_spectral_radius_within_the_bound(seed, edges, bound, norm, activation) -> None:
    torch.manual_seed(seed)
    graph = random_graph(seed, edges=edges)
    cell = ContractiveCell(**SIZES, norm=norm, bound=bound, activation=activation, dropout=0.0)
    with torch.no_grad():
        cell.propagate.parametrizations.weight.original.mul_(100)
    update, state = cell.double().start(
        graph.x.double(), adjacency_matrix(graph.edge_index, 8, "symmetric", torch.double)
    )
    jacobian = torch.autograd.functional.jacobian(update, torch.randn_like(state)).reshape(state.numel(), -1)
    assert torch.linalg.eigvals(jacobian).abs().max() <= bound + 1e-9
    if norm != "infinity":
        assert torch.linalg.matrix_norm(jacobian, 2) <= bound + 1e-9


@pytest.mark.parametrize("aggregation", ["sum", "mean", "symmetric"])
def test_the_adjacency_matrix_equals_pyg_s_aggregation(aggregation) -> None:
    edge_index = torch.tensor([[0, 1, 3, 3, 3], [1, 2, 0, 1, 1]])  # directed, one edge twice
    states = torch.rand(4, 2)
    found = adjacency_matrix(edge_index, 4, aggregation) @ states
    once = torch.tensor([[0, 1, 3, 3], [1, 2, 0, 1]])
    if aggregation == "symmetric":
        loops = torch.cat([once, torch.arange(4).repeat(2, 1)], dim=1)
        degree = torch.bincount(loops[1], minlength=4).float()
        dense_matrix = torch.zeros(4, 4)
        dense_matrix[loops[1], loops[0]] = (degree[loops[1]] * degree[loops[0]]) ** -0.5
        expected = dense_matrix @ states
    else:
        expected = SimpleConv(aggr=aggregation)(states, once)
    torch.testing.assert_close(found, expected)


def test_the_symmetric_adjacency_has_norm_one() -> None:
    graph = random_graph(3, num_nodes=20)
    matrix = adjacency_matrix(graph.edge_index, 20, "symmetric") @ torch.eye(20)
    assert math.isclose(torch.linalg.matrix_norm(matrix, 2), 1, rel_tol=1e-5)


def test_sparse_and_dense_features_give_the_same_input() -> None:
    graph = random_graph(0, num_features=40)
    graph.x *= torch.rand(graph.x.shape, generator=torch.Generator().manual_seed(0)) < 0.1
    prepared = PreparedGraph(graph, "symmetric")
    assert isinstance(prepared.features, SparseMatrix)
    torch.manual_seed(0)
    cell = PageRankCell(40, 3, 4, dropout=0.0)
    torch.testing.assert_close(cell.injected(prepared.features), cell.injected(graph.x))


@pytest.mark.parametrize("sparse", [False, True])
def test_dropout_of_features_keeps_their_mean_and_is_off_in_evaluation(sparse) -> None:
    torch.manual_seed(0)
    cell = PageRankCell(1000, 2, 1, dropout=0.75)
    torch.nn.init.ones_(cell.inject.weight)
    features = torch.ones(50, 1000)
    given_features = SparseMatrix.from_dense(features) if sparse else features
    drawn = cell.injected(given_features)
    assert abs(drawn.mean() - 1000) < 30
    assert drawn.std() > 10
    assert torch.equal(cell.eval().injected(given_features), torch.full((50, 1), 1000.0))


def test_dropout_masks_are_drawn_once_per_solve() -> None:
    graph = random_graph()
    for make in MAKERS.values():
        cell = make()
        cell.dropout = 0.5
        update, state = cell.start(graph.x, PreparedGraph(graph, cell.aggregation).adjacency)
        assert torch.equal(update(state), update(state))


def test_a_graph_is_recognised_by_its_tensors() -> None:
    graph = random_graph(0)
    prepared = PreparedGraph(graph, "mean")
    assert prepared.is_of(graph, "mean")
    assert prepared.is_of(Data(x=graph.x, edge_index=graph.edge_index), "mean")
    assert not prepared.is_of(graph, "sum")
    assert not prepared.is_of(graph, "mean", torch.float64)
    copied = graph.clone()
    assert not prepared.is_of(copied, "mean")
    assert PreparedGraph(copied, "mean").fingerprint == prepared.fingerprint
    copied.x[0, 0] += 1
    assert PreparedGraph(copied, "mean").fingerprint != prepared.fingerprint
    graph.x[0, 0] += 1
    assert not prepared.is_of(graph, "mean")


CHANGES = {
    "converted to float64": lambda graph: graph.apply(
        lambda tensor: tensor.double() if tensor.is_floating_point() else tensor
    ),
    "cloned": lambda graph: graph.clone(),
    "copied": copy.deepcopy,
    "a part": lambda graph: graph.subgraph(torch.arange(6)),
    "other features": lambda graph: graph.update({"x": torch.rand(8, 5)}),
    "other edges": lambda graph: graph.update({"edge_index": EDGES}),
    "features changed in place": lambda graph: graph.x.mul_(2) is None or graph,
    "edges changed in place": lambda graph: graph.edge_index.copy_(graph.edge_index.flip(1)) is None or graph,
}
EDGES = torch.tensor([[0, 1, 2], [1, 2, 0]])


@pytest.mark.parametrize("change", CHANGES)
def test_a_graph_is_prepared_again_only_if_it_changed(change) -> None:
    graph, prepare = random_graph(0), PrepareGraph("symmetric")
    assert "prepared" in prepare(graph)
    assert "prepared" not in graph
    first = prepare.forward(graph).prepared
    assert prepare.forward(graph).prepared is first
    assert prepare(copy.copy(graph)).prepared is first
    changed = CHANGES[change](graph)
    found, expected = prepare.forward(changed).prepared, PreparedGraph(changed, "symmetric")
    assert torch.equal(found.features, expected.features)
    states = torch.rand(changed.num_nodes, 2)
    assert torch.equal(found.adjacency @ states, expected.adjacency @ states)
    assert prepare.forward(changed).prepared is found


def test_a_graph_is_prepared_for_each_aggregation_and_dtype() -> None:
    graph = random_graph(0)
    for aggregation in ("sum", "mean", "sum"):
        for dtype in (torch.float32, torch.float64):
            prepared = PrepareGraph(aggregation, dtype).forward(graph).prepared
            assert prepared.is_of(graph, aggregation, dtype)
            assert prepared.features.dtype == prepared.adjacency.values.dtype == dtype


def test_a_graph_prepared_in_inference_mode_can_be_trained_on() -> None:
    graph = random_graph(0)
    graph.x *= torch.eye(8, 5)  # sparse features
    cell = MAKERS["page_rank"]()
    with torch.inference_mode():
        PrepareGraph(cell.aggregation).forward(graph)
    prepared = PrepareGraph(cell.aggregation).forward(graph).prepared
    update, state = cell.start(prepared.features, prepared.adjacency)
    update(state).sum().backward()
    assert cell.inject.weight.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64, torch.bool])
def test_features_may_be_of_any_dtype(dtype) -> None:
    graph = random_graph(0)
    graph.x = graph.x.mul(10).to(dtype)
    prepared = PreparedGraph(graph, "sum")
    assert prepared.fingerprint == PreparedGraph(graph.clone(), "sum").fingerprint
    assert torch.equal(prepared.features, graph.x.float())


@pytest.mark.parametrize("aggregation", ["sum", "mean", "symmetric"])
def test_the_adjacency_of_many_nodes_does_not_depend_on_the_index_dtype(aggregation) -> None:
    """Flat indices of edges overflow int32 from 46,341 nodes on."""
    nodes = 50_000
    generator = torch.Generator().manual_seed(0)
    edges = torch.randint(nodes - 100, nodes, (2, 500), generator=generator)
    states = torch.rand(nodes, 2, generator=generator)
    wide, narrow = (
        adjacency_matrix(edges.to(dtype), nodes, aggregation) @ states for dtype in (torch.int64, torch.int32)
    )
    assert torch.equal(wide, narrow)
    dense_matrix = torch.zeros(100, 100).index_put((edges[1] - nodes + 100, edges[0] - nodes + 100), torch.ones(500))
    if aggregation == "mean":
        dense_matrix /= dense_matrix.sum(1, keepdim=True).clamp_min(1)
    if aggregation == "symmetric":
        dense_matrix.fill_diagonal_(1)  # gcn_norm adds missing self-loops
        root = dense_matrix.sum(1).rsqrt()
        dense_matrix = root[:, None] * dense_matrix * root
    torch.testing.assert_close(wide[-100:], dense_matrix @ states[-100:])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"edge_index": EDGES.T}, r"edge_index has the shape \[3, 2\]: pass \[2, num_edges\]"),
        ({"edge_index": EDGES.float()}, r"edge_index has the dtype torch\.float32: convert it to integers"),
        ({"edge_index": torch.empty(0, dtype=torch.int64)}, r"edge_index has the shape \[0\]"),
        ({"edge_index": EDGES + 6}, "edge_index holds node 8, .* 0 to 7"),
        ({"edge_index": EDGES - 1}, "edge_index holds node -1"),
        ({"edge_index": None}, "edge_index is missing"),
        ({"x": None}, "x is missing"),
        ({"x": torch.ones(8)}, r"x has the shape \[8\]"),
        ({"x": torch.full((8, 5), torch.inf)}, "x holds NaN, infinity"),
    ],
)
def test_a_malformed_graph_is_refused(changes, message) -> None:
    graph = random_graph(0)
    graph.update(changes)
    with pytest.raises(UserError, match=message):
        PrepareGraph("sum").forward(graph)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: PageRankCell(0, 3), "num_features=0"),
        (lambda: PageRankCell(5, 1), "num_classes=1"),
        (lambda: PageRankCell(5, 3, 0), "num_hidden=0"),
        (lambda: PageRankCell(5, 3, alpha=0.0), "alpha=0.0"),
        (lambda: PageRankCell(5, 3, alpha=1.0, learn_alpha=True), "alpha=1 has no finite logit"),
        (lambda: PageRankCell(5, 3, dropout=1.0), r"dropout=1\.0"),
        (lambda: ContractiveCell(5, 3, bound=1.0), r"bound=1\.0 must be below 1"),
        (lambda: ContractiveCell(5, 3, norm="nuclear"), "norm='nuclear' must be one of spectral"),
        (lambda: ContractiveCell(5, 3, activation="exp"), "activation='exp' must be one of relu, tanh"),
        (lambda: GRUPropagation(5, 3, aggregation="max"), "aggregation='max' must be one of sum, mean"),
        (lambda: GRUPropagation(5, 3, features_enter="never"), "features_enter='never' must be one of every_step"),
    ],
)
def test_invalid_arguments_are_refused(make, message) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_features_in_the_first_state_only_are_forgotten() -> None:
    """As in the paper's released code: the fixed point of a contraction does not depend on the initial state."""
    torch.manual_seed(0)
    graph, ends = random_graph(), []
    cells = [GRUPropagation(**SIZES, features_enter=entry) for entry in ("first_state", "every_step")]
    for cell in cells:
        with torch.no_grad():
            cell.gru.weight_hh.mul_(0.3)
            cell.gru.weight_ih.mul_(0.2)
            adjacency = PreparedGraph(graph, cell.aggregation).adjacency
            for features in (graph.x, 1 - graph.x):
                update, state = cell.start(features, adjacency)
                ends.append(NeumannRBP(solver=SOLVER)(update, state).state)
    torch.testing.assert_close(ends[0], ends[1], rtol=0, atol=1e-5)
    assert (ends[2] - ends[3]).norm() > 1e-2


def test_the_interface_is_abstract() -> None:
    with pytest.raises(TypeError):
        PropagationCell(5, 3, 4)
