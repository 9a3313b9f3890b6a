"""Small versions of every task, trained in processes started by every method."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer, seed_everything
from lightning.pytorch.strategies import DDPStrategy
from torch import nn
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from datamodules import ImagePatterns
from models import (
    CitationGNN,
    ContractiveCell,
    ExampleWeights,
    GRUPropagation,
    HopfieldMemory,
    HyperparameterOptimizer,
    PageRankCell,
    WeightDecay,
)
from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    EquilibriumMonitor,
    ExactAdjoint,
    FailurePolicy,
    FixedPointLayer,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    Picard,
)
from rbp_lightning.linear import NormalCG
from tests.training import PROCESSES, QUIET

SOLVER = Picard(8, tol=0)

ESTIMATORS: dict[str, GradientEstimator] = {
    "BPTT": BPTT(SOLVER),
    "TBPTT": TBPTT(3, SOLVER),
    "RBP": RBP(5, solver=SOLVER),
    "NeumannRBP": NeumannRBP(3, SOLVER),
    "CGRBP": CGRBP(5, solver=SOLVER),
    "AdaptiveNeumann": AdaptiveNeumann(0.1, solver=SOLVER),
    "ExactAdjoint": ExactAdjoint(solver=SOLVER),
    "Implicit": Implicit(NormalCG(5), SOLVER),
}

METHODS = ("fork", "forkserver", "spawn")


def citation(cell: type) -> Callable[[], tuple[LightningModule, Any]]:
    """Makes a graph network with a cell, and a path graph of six nodes."""

    def made() -> tuple[LightningModule, Any]:
        edges = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
        mask = torch.tensor([True] * 4 + [False] * 2)
        graph = Data(torch.rand(6, 5), torch.cat([edges, edges.flip(0)], 1), y=torch.arange(6) % 3, train_mask=mask)
        model = CitationGNN(cell(5, 3, 3, dropout=0.0))
        model.class_scores(graph, "predict")  # stores the graph's matrices on the graph
        return model, DataLoader([graph], batch_size=None)

    return made


def memory() -> tuple[LightningModule, Any]:
    """An associative memory, with the data module of its task."""
    return HopfieldMemory(64, 4), ImagePatterns(num_patterns=2, train_draws=4, eval_draws=1, batch_size=2)


def hypergradient() -> tuple[LightningModule, Any]:
    """Learning hyperparameters of a linear network."""
    splits = {
        split: {"images": torch.rand(6, 1, 2, 2), "labels": torch.arange(6) % 2, "index": torch.arange(6)}
        for split in ("train", "val")
    }
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    model = HyperparameterOptimizer(network, [WeightDecay(), ExampleWeights(6)], num_classes=2, batch_size=4)
    return model, DataLoader([splits], batch_size=None)


class Layered(LightningModule):
    """A user's module with a fixed-point layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = FixedPointLayer(nn.GRUCell(4, 4))

    def training_step(self, inputs: torch.Tensor, batch_idx: int) -> torch.Tensor:
        self.layer.estimator = self.estimator
        return self.layer(inputs).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


TASKS: dict[str, Callable[[], tuple[LightningModule, Any]]] = {
    "memory": memory,
    "page rank": citation(PageRankCell),
    "contractive": citation(ContractiveCell),
    "gated": citation(GRUPropagation),
    "hypergradient": hypergradient,
    "layer": lambda: (Layered(), DataLoader(torch.rand(8, 4), batch_size=2)),
}


class SaveParameters(Callback):
    """Saves the parameters of each process before and after the training."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.before: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.before = {name: one.detach().clone() for name, one in pl_module.named_parameters()}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        after = {name: one.detach() for name, one in pl_module.named_parameters()}
        torch.save((self.before, after), f"{self.name} {trainer.global_rank}.pt")


def train(task: str, estimator: str, method: str) -> None:
    """Trains for an epoch in several processes.

    Args:
        task: The name of the task.
        estimator: The name of the estimator.
        method: The start method of the processes.
    """
    seed_everything(0, verbose=False)
    module, data = TASKS[task]()
    strategy = DDPStrategy(start_method=method, process_group_backend="gloo", find_unused_parameters=True)
    save = SaveParameters(f"{task} {estimator} {method}")
    callbacks = [ESTIMATORS[estimator], FailurePolicy(diverged="skip"), EquilibriumMonitor(1, 0), save]
    options = {**QUIET, "callbacks": callbacks, "max_epochs": 1, "limit_val_batches": 0, "devices": PROCESSES}
    trainer = Trainer(**options, strategy=strategy)
    trainer.fit(module, **({"datamodule": data} if isinstance(data, ImagePatterns) else {"train_dataloaders": data}))


if __name__ == "__main__":
    for case in sys.argv[2:]:
        train(*case.split(","))
    Path(sys.argv[1]).touch()
