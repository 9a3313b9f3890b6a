"""Trains every task without and with an interruption, in one process or as one of two.

``python long_runs.py FOLDER RANK`` runs one of two processes, with the environment of a process of Lightning.
"""

import os
import random
import signal
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import DDPStrategy
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torch_geometric.data import Data

from datamodules import CitationGraph, ImagePatterns, LabelledImages, Mazes, MNISTSplits, PrefixSums, Sudoku
from datamodules.power_law_graph import PowerLawGraph
from models import (
    AttentionCell,
    CitationGNN,
    ConvolutionalCell,
    ConvolutionalImageCell,
    EquilibriumClassifier,
    EquilibriumReasoner,
    ExampleWeights,
    HopfieldMemory,
    HyperparameterOptimizer,
    PageRankCell,
    WeightDecay,
)
from rbp_lightning import JFB, RBP, TBPTT, FailurePolicy, FixedPointLayer, GradientEstimator, NeumannRBP, Picard
from rbp_lightning.cli.trainer import RunTrainer
from rbp_lightning.nn import StochasticDepth
from tests.training import QUIET

SOLVER = Picard(6, tol=0)

Task = tuple[LightningModule, Any, GradientEstimator]


def numbers(*shape: int) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(0))


def memory() -> Task:
    data = ImagePatterns(num_patterns=2, train_draws=4, eval_draws=1, batch_size=2)
    return HopfieldMemory(64, 4), data, RBP(5, solver=SOLVER)


def citation() -> Task:
    """The whole graph is one batch."""
    edges = torch.tensor([[0, 1, 2, 3, 4], [1, 2, 3, 4, 5]])
    mask = torch.tensor([True] * 4 + [False] * 2)
    graph = Data(numbers(6, 5), torch.cat([edges, edges.flip(0)], 1), y=torch.arange(6) % 3)
    graph.train_mask = graph.val_mask = mask
    loader = DataLoader([graph], batch_size=None)
    return CitationGNN(PageRankCell(5, 3, 3, dropout=0.5)), loader, NeumannRBP(3, SOLVER)


def parts() -> Task:
    """Each part of a graph is a batch."""
    graph = partial(PowerLawGraph, num_nodes=24, average_degree=2, num_classes=3, num_features=5)
    data = CitationGraph(dataset=graph, split="per_class", per_class=4, num_val=6, num_test=3, num_parts=4)
    return CitationGNN(PageRankCell(5, 3, 3, dropout=0.5)), data, NeumannRBP(3, SOLVER)


def classifier() -> Task:
    """Images are shifted and rotated anew in each epoch."""
    data = LabelledImages(num_train=12, num_val=3, num_test=1, shift=1.0, rotation=10.0, batch_size=2)
    return EquilibriumClassifier(ConvolutionalImageCell(num_hidden=2)), data, NeumannRBP(3, SOLVER)


def hypergradient() -> Task:
    """Each inner training continues with the network of the last one, and in a new order."""
    data = MNISTSplits(source="digits", num_train=20, num_val=9, num_test=3)
    network = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    learned = [WeightDecay(), ExampleWeights(20)]
    model = HyperparameterOptimizer(network, learned, batch_size=6, inner_start="last")
    return model, data, TBPTT(3, SOLVER)


def prefix_sums() -> Task:
    data = PrefixSums(length=5, val_lengths=[5], num_train=12, num_val=3, num_test=1, batch_size=2)
    model = EquilibriumReasoner(ConvolutionalCell(1, 2, 4), random_steps=[2, 9], random_start=True)
    return model, data, JFB(SOLVER)


def mazes() -> Task:
    data = Mazes(cells=2, val_cells=[2], num_train=12, num_val=3, num_test=1, batch_size=2)
    model = EquilibriumReasoner(ConvolutionalCell(3, 2, 4, dims=2), random_steps=[2, 9], eval_steps=[3, 6])
    return model, data, NeumannRBP(2, SOLVER)


def sudoku() -> Task:
    data = Sudoku(empty=4, num_train=12, num_val=3, num_test=1, batch_size=2)
    model = EquilibriumReasoner(AttentionCell(4, 4, 16, 8, num_heads=2), random_start=True, segments=2)
    return model, data, TBPTT(2, SOLVER)


class Cell(nn.Module):
    """A cell with dropout masks, which are held over a solve."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), nn.Tanh(), StochasticDepth(0.5))

    def forward(self, state: Tensor, inputs: Tensor) -> Tensor:
        return self.inner(state) + inputs


class Drawing(LightningModule):
    """A user's module that draws from the global generators."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = FixedPointLayer(Cell())

    def solve(self, inputs: Tensor) -> Tensor:
        return self.layer(inputs + 0.1 * torch.randn_like(inputs) + np.random.rand() + random.random()).square().mean()

    def training_step(self, inputs: Tensor, batch_idx: int) -> Tensor:
        return self.solve(inputs)

    def validation_step(self, inputs: Tensor, batch_idx: int) -> None:
        self.log("val/loss", self.solve(inputs), sync_dist=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Shuffled(LightningDataModule):
    """Vectors that are shuffled in each epoch."""

    def train_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(numbers(12, 4), batch_size=2, shuffle=True)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Tensor]:
        return DataLoader(numbers(4, 4), batch_size=2)  # type: ignore[arg-type]


def own() -> Task:
    return Drawing(), Shuffled(), NeumannRBP(3, SOLVER)


TASKS: dict[str, Callable[[], Task]] = {
    one.__name__: one for one in (memory, citation, parts, classifier, hypergradient, prefix_sums, mazes, sudoku, own)
}

IN_TWO_PROCESSES = [name for name in TASKS if name != "citation"]
"""All tasks that divide their work among processes."""


class Terminated(Callback):
    """Sends SIGTERM to its process in the second epoch, in its second batch or its only one."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        second = batch_idx == min(1, int(trainer.num_training_batches) - 1)
        if trainer.current_epoch == 1 and second and trainer.global_rank == self.rank:
            os.kill(os.getpid(), signal.SIGTERM)


def fit(task: str, folder: Path, processes: int, *callbacks: Callback, ckpt: Path | None = None) -> None:
    """Trains for three epochs; a resumed run begins with other states of the random generators."""
    seed_everything(0, verbose=False)
    if ckpt is not None:
        for draw in (torch.randperm, random.randrange, np.random.randint):
            draw(9)
    module, data, estimator = TASKS[task]()
    last = ModelCheckpoint(folder, "last", enable_version_counter=False, save_on_train_epoch_end=True)
    options: dict[str, Any] = {**QUIET, "enable_checkpointing": True, "max_epochs": 3, "num_sanity_val_steps": 0}
    if processes > 1:
        strategy = DDPStrategy(process_group_backend="gloo", find_unused_parameters=True)
        options |= {"devices": processes, "strategy": strategy}
    policy = FailurePolicy(not_converged="ignore", diverged="ignore", adjoint="ignore", truncation_tol=1.0)
    trainer = RunTrainer(callbacks=[estimator, policy, last, *callbacks], **options)
    loaders = {"datamodule": data} if hasattr(data, "setup") else {"train_dataloaders": data, "val_dataloaders": data}
    trainer.fit(module, **loaders, ckpt_path=ckpt)
    trainer.save_checkpoint(folder / "end.ckpt")


def run(task: str, folder: Path, processes: int = 1) -> None:
    """Trains in ``whole`` to the end, and in ``cut`` and ``resumed`` with an interruption of the last process."""
    fit(task, folder / task / "whole", processes)
    with pytest.raises(SystemExit) as ended:
        fit(task, folder / task / "cut", processes, Terminated(processes - 1))
    assert ended.value.code == 143
    fit(task, folder / task / "resumed", processes, ckpt=folder / task / "cut" / "last.ckpt")


if __name__ == "__main__":
    for name in IN_TWO_PROCESSES:
        run(name, Path(sys.argv[1]), processes=2)
    torch.distributed.destroy_process_group()
    Path(sys.argv[1], f"done{os.environ['LOCAL_RANK']}").touch()
