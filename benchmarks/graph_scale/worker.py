"""Trains on one graph and measures time and memory, in a process of its own."""

import resource
import sys
import time
import warnings
from functools import partial
from typing import Any

import torch
from torch_geometric.data import Data

from benchmarks.peak_memory import PeakMemory
from datamodules import CitationGraph
from datamodules.power_law_graph import PowerLawGraph
from models import ContractiveCell, PartitionedGNN
from rbp_lightning import NeumannRBP, Picard

CPU = torch.device("cpu")
STEPS, TOLERANCE = 5, 1e-3
"""Products of the gradient, and relative tolerance of the solves; the update contracts by one half."""


def resident() -> int:
    """Peak bytes of the process's memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def drawn(nodes: int, average_degree: float, parts: int) -> tuple[Data, list[Data]]:
    """Generates a graph.

    Args:
        nodes: Number of nodes.
        average_degree: Average degree.
        parts: Number of random parts; 1 is the whole graph.

    Returns:
        The graph, and its training batches.
    """
    dataset = partial(PowerLawGraph, nodes, average_degree)
    ratios: dict[str, Any] = {"split": "ratio", "train_ratio": 0.1, "val_ratio": 0.1, "normalize_features": False}
    data = CitationGraph(dataset=dataset, num_parts=parts, partition="random", **ratios)
    data.setup("fit")
    return data.graph, list(data.train_dataloader())


def measured(nodes: int, average_degree: float, parts: int, epochs: int, width: int) -> dict[str, Any]:
    """Trains on a graph, and classifies its nodes.

    Args:
        nodes: Number of nodes.
        average_degree: Average degree.
        parts: Number of parts, and of blocks in evaluation; 1 is the whole graph.
        epochs: Number of timed epochs, after a first one that builds the matrices of the batches.
        width: Hidden units.

    Returns:
        The measurements. Seconds are CPU seconds. Memory is in bytes: ``set_up``, ``trained`` and ``evaluated`` are the
        peaks of the process up to then; ``step`` and ``evaluation`` are peaks of the allocator, beyond what was
        allocated before.
    """
    torch.set_num_threads(1)
    torch.manual_seed(0)
    warnings.filterwarnings("ignore", ".*`self.trainer` reference is not registered")
    warnings.filterwarnings("ignore", "You are trying to `self.log")
    imported, begin = resident(), time.process_time()
    graph, batches = drawn(nodes, average_degree, parts)
    found: dict[str, Any] = {"imported": imported, "draw_seconds": time.process_time() - begin}
    cell = ContractiveCell(graph.num_features, int(graph.y.max()) + 1, width, bound=0.5, dropout=0.0)
    model = PartitionedGNN(cell, parts)
    model.estimator = NeumannRBP(STEPS, Picard(100, TOLERANCE))
    optimizer = model.configure_optimizers()

    def step(batch: Data) -> float:
        begin = time.process_time()
        optimizer.zero_grad()
        model.training_loss(batch).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        return time.process_time() - begin

    found["first_epoch_seconds"] = sum(step(batch) for batch in batches)
    found["set_up"] = resident()
    found["step_seconds"] = [step(batch) for _ in range(epochs) for batch in batches]
    found["trained"] = resident()
    with PeakMemory(CPU) as peak:
        step(batches[0])
    found["step"] = peak.bytes
    model.eval()
    with torch.no_grad(), PeakMemory(CPU) as peak:
        begin = time.process_time()
        classes = model.class_scores(graph, "predict").argmax(1)
        found["evaluation_seconds"] = time.process_time() - begin
    found["evaluation"], found["evaluated"] = peak.bytes, resident()
    found["accuracy"] = float((classes == graph.y)[graph.val_mask].float().mean())
    return found | {"edges": graph.num_edges, "updates": (epochs + 1) * len(batches) + 1}
