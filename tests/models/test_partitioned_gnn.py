"""Training on parts with historical states and evaluation in blocks, against the whole graph."""

import copy
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch import Trainer, seed_everything
from torch_geometric.data import Data

from benchmarks.peak_memory import PeakMemory
from datamodules import CitationGraph
from datamodules.graph_parts import cut, random_parts
from datamodules.power_law_graph import PowerLawGraph
from models import CitationGNN, ContractiveCell, GRUPropagation, PageRankCell, PartitionedGNN
from models.propagation.parts import PartMatrices
from rbp_lightning import NeumannRBP, Picard, SparseMatrix, UserError
from tests.cli.options import ROOT
from tests.cli.runs import Run, Zygote
from tests.graphs import RandomGraph, random_graph
from tests.training import make_trainer

SIZES = {"num_features": 5, "num_classes": 3, "num_hidden": 6, "dropout": 0.0}
CELLS = {
    "page rank": partial(PageRankCell, **SIZES, alpha=0.3),
    "spectral": partial(ContractiveCell, **SIZES, bound=0.7, activation="tanh"),
    "infinity": partial(ContractiveCell, **SIZES, bound=0.7, norm="infinity"),
    "gated": partial(GRUPropagation, **SIZES),
}
EXACT = NeumannRBP(100, Picard(500, 1e-14))


def network(make_cell: Any, kind: type[CitationGNN] = PartitionedGNN, **arguments: Any) -> Any:
    seed_everything(0, verbose=False)
    model = kind(make_cell(), **arguments).double()
    model.estimator = EXACT
    return model


def float64_graph(nodes: int = 40, seed: int = 0) -> Data:
    graph = random_graph(seed, nodes, edges=0.1)
    graph.x = graph.x.double()
    return graph


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 2**31), nodes=st.integers(1, 12), data=st.data())
def test_the_matrices_of_a_part_hold_its_rows(seed: int, nodes: int, data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(nodes, nodes, generator=generator) * (torch.rand(nodes, nodes, generator=generator) < 0.4)
    own = random_parts(nodes, data.draw(st.integers(1, nodes)), seed)[0]
    matrices = PartMatrices(SparseMatrix.from_dense(dense), own)
    assert torch.equal(matrices.own @ torch.eye(len(own)), dense[own][:, own])
    expected = dense[own].index_fill(1, own, 0.0)
    assert torch.equal(matrices.outside @ torch.eye(nodes), expected)


@pytest.mark.parametrize("cell", CELLS)
def test_sweeps_over_the_parts_converge_to_the_fixed_point_of_the_whole_graph(cell: str) -> None:
    graph, model = float64_graph(), network(CELLS[cell])
    exact = model(graph)[1].state.detach()
    model.estimator = NeumannRBP(1, Picard(8, 0.0))
    parts = cut(graph, random_parts(graph.num_nodes, 4, seed=0))
    errors = []
    for _ in range(60):
        for part in parts:
            model(part)
        errors.append(float((model.history.states_like(exact, graph.num_nodes) - exact).norm() / exact.norm()))
    assert errors[0] > 1e-3  # one sweep is not enough
    assert errors[-1] < 1e-11


@pytest.mark.parametrize("cell", CELLS)
def test_the_gradient_of_a_part_is_that_of_the_graph_with_the_other_states_fixed(cell: str) -> None:
    graph, model = float64_graph(), network(CELLS[cell]).eval()  # so that the history is not updated
    part = cut(graph, random_parts(graph.num_nodes, 3, seed=0))[1]
    width = model(part)[1].state.shape[1]
    rest = torch.randn(graph.num_nodes, width, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    model.history.push(torch.arange(graph.num_nodes), rest, graph.num_nodes)

    found = model(part)[1]
    parameters = [one for one in model.parameters() if one.requires_grad]
    loss = model.cross_entropy(model.cell.scores(found.state), part, part.train_mask)
    gradient = torch.autograd.grad(loss, parameters)

    prepared = model._prepare(graph)
    update, _ = model.cell.start(prepared.features, prepared.adjacency)
    own = torch.zeros(graph.num_nodes, 1, dtype=torch.bool).index_fill(0, part.nodes, True)
    state = rest
    for _ in range(100):
        state = torch.where(own, update(state), rest)
    torch.testing.assert_close(found.state, state[part.nodes], rtol=1e-9, atol=1e-10)
    loss = model.cross_entropy(model.cell.scores(state), graph, graph.train_mask & own[:, 0])
    expected = torch.autograd.grad(loss, parameters)
    torch.testing.assert_close(gradient, expected, rtol=1e-8, atol=1e-10)


@torch.no_grad()
@pytest.mark.parametrize("cell", CELLS)
def test_evaluation_in_blocks_equals_that_of_the_whole_graph(cell: str) -> None:
    graph = float64_graph(20)
    graph.x *= torch.eye(20, 5) if cell == "spectral" else 1  # sparse, or dense
    whole = network(CELLS[cell], CitationGNN).eval()
    expected = whole(graph)[1]
    for blocks in (1, 3, 30):
        model = network(CELLS[cell], eval_blocks=blocks).eval()
        model.load_state_dict(whole.state_dict())
        found = model(graph)[1]
        torch.testing.assert_close(found.state, expected.state, rtol=0, atol=1e-12)
        assert abs(found.steps - expected.steps) <= 1  # rounding may decide the last step


def test_blocks_and_parts_take_less_memory() -> None:
    data = CitationGraph(
        dataset=partial(PowerLawGraph, 4000, num_features=5, num_classes=3),
        split="ratio",
        train_ratio=0.3,
        num_parts=8,
        partition="random",
    )
    data.setup("fit")
    graph = data.graph
    part = next(iter(data.train_dataloader()))
    cell = partial(ContractiveCell, 5, 3, 32, dropout=0.0)
    peaks = {}
    for name, batch, blocks in (("whole", graph, 1), ("part", part, 1), ("at once", graph, 1), ("blocks", graph, 8)):
        model = PartitionedGNN(cell(), blocks)
        model.estimator = NeumannRBP(5, Picard(10, 0.0))
        trains = name in ("whole", "part")
        model.train(trains)
        for _ in range(2):  # the first run prepares the matrices
            with torch.set_grad_enabled(trains), PeakMemory(torch.device("cpu")) as peak:
                state = model(batch)[1].state
                if trains:
                    state.sum().backward()
        peaks[name] = peak.bytes
    assert peaks["part"] < peaks["whole"] / 4
    assert peaks["blocks"] < 0.8 * peaks["at once"]


def test_a_resumed_run_equals_an_uninterrupted_one(tmp_path: Path) -> None:
    def fitted(epochs: int, **arguments: Any) -> tuple[PartitionedGNN, Trainer]:
        seed_everything(0, verbose=False)
        model = PartitionedGNN(PageRankCell(5, 3, 6, dropout=0.5), eval_blocks=2, consistency=1.0)
        trainer = make_trainer(max_epochs=epochs)
        model.estimator = NeumannRBP(10, Picard(50, 1e-2))  # so loose that the result depends on the initial state
        trainer.fit(model, CitationGraph(dataset=RandomGraph, num_parts=3, partition="random"), **arguments)
        return model, trainer

    whole, _ = fitted(4)
    _, trainer = fitted(2)
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed, _ = fitted(4, ckpt_path=tmp_path / "half.ckpt")
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.state_dict()[name], tensor)


def test_evaluation_neither_uses_nor_changes_the_history() -> None:
    model, graph = network(CELLS["page rank"], eval_blocks=2).eval(), float64_graph()
    before = model(graph)[1].state
    history = torch.randn(40, 3, dtype=torch.float64)
    model.history.push(torch.arange(40), history, 40)
    assert torch.equal(model(graph)[1].state, before)
    assert torch.equal(model.history.states_like(history, 40), history)
    assert copy.deepcopy(model)(graph)[1].state.equal(before)


def test_unsupported_cells_and_damaged_histories_are_refused() -> None:
    with pytest.raises(UserError, match=r"PartitionedGNN: .*features_enter='first_state'"):
        PartitionedGNN(GRUPropagation(5, 3, features_enter="first_state"))
    with pytest.raises(UserError, match="PartitionedGNN: eval_blocks=0"):
        network(CELLS["gated"], eval_blocks=0)
    with pytest.raises(UserError, match="historical states in the checkpoint"):
        network(CELLS["gated"]).on_load_checkpoint({"historical_states": [1]})


@pytest.mark.parametrize("parts", [2, 4])  # one, and two, for each process
def test_parts_are_refused_in_two_processes(parts: int, zygote: Zygote, tmp_path: Path) -> None:
    words = ["fit", f"--config={ROOT}/configs/big_graph.yaml", "--data.dataset.num_nodes=60"]
    words += [f"--data.num_parts={parts}"]
    words += ["--trainer.accelerator=cpu", "--trainer.devices=2", "--trainer.strategy=ddp_fork"]
    run = Run(zygote, tmp_path, words, {})
    assert run.end() == 1
    assert "Traceback" not in run.error()
    (line,) = run.lines()
    assert "PartitionedGNN: 2 processes" in line
    assert "set devices to 1" in line
