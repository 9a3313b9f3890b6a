"""The base class of node classifiers."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer
from torch_geometric.data import Data
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from datamodules.graph_checks import MASKS, checked_features, checked_labels, checked_mask
from models.batches import BatchesOfOneKind
from models.classes_file import write_classes
from models.labels import check_labels
from models.snapshot import Snapshot
from rbp_lightning import UserError
from rbp_lightning.errors import check_number


class NodeClassifier(BatchesOfOneKind, ABC):
    """Trains and evaluates a classifier of the nodes of a graph.

    A batch is a graph with ``x``, ``edge_index``, ``y`` and the masks ``train_mask``, ``val_mask`` and ``test_mask``;
    each stage uses the nodes of its mask. The random numbers of a training step depend only on the seed, the epoch, the
    batch and the process, so a resumed run draws the same ones.

    Args:
        input_layer: The layer that is applied to the features.
        num_classes: Number of classes.
        learning_rate: Adam's learning rate, above 0.
        weight_decay: L2 penalty on the input layer, at least 0 (Kipf and Welling 2017). ``--optimizer`` on the command
            line replaces both.

    Raises:
        UserError: If an argument is out of its range.
    """

    batch_kind = Data

    def __init__(self, input_layer: nn.Linear, num_classes: int, learning_rate: float, weight_decay: float) -> None:
        super().__init__()
        self._num_features = input_layer.in_features
        self._input_parameters = list(input_layer.parameters())
        self.num_classes = num_classes
        self.learning_rate = check_number(self, "learning_rate", learning_rate, 0.0, low_allowed=False)
        self.weight_decay = check_number(self, "weight_decay", weight_decay, 0.0)
        metrics = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(num_classes, average="micro"),
                "macro_f1": MulticlassF1Score(num_classes, average="macro"),
            }
        )
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")

    @abstractmethod
    def class_scores(self, graph: Data, stage: str) -> Tensor:
        """Returns class scores (logits) of all nodes.

        Args:
            graph: The graph.
            stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Returns:
            Scores, of shape ``[num_nodes, num_classes]``.
        """

    def training_loss(self, graph: Data) -> Tensor:
        """Returns the mean cross-entropy of the labelled training nodes."""
        return self.cross_entropy(self.class_scores(graph, "train"), graph, graph.train_mask)

    def cross_entropy(self, scores: Tensor, graph: Data, mask: Tensor) -> Tensor:
        """Returns the mean cross-entropy of the labelled nodes of a mask, or 0 if there are none.

        Args:
            scores: Class scores (logits), of shape ``[num_nodes, num_classes]``.
            graph: The graph.
            mask: Whether each node is included, bool, of shape ``[num_nodes]``.
        """
        known = mask & (graph.y >= 0)
        wide = scores[known].to(torch.promote_types(scores.dtype, torch.float32))
        total = cross_entropy(wide, graph.y[known].long(), reduction="sum")
        mean: Tensor = total / known.sum().clamp_min(1)
        return mean

    def training_step(self, graph: Data, batch_idx: int) -> Tensor:
        """Computes the loss of the training nodes."""
        self._check(graph, "train_mask")
        with self._reproducible_draws(batch_idx):
            loss = self.training_loss(graph)
        self.log("train/loss", loss, prog_bar=True, batch_size=1)
        return loss

    def _evaluate(self, graph: Data, metrics: MetricCollection, stage: str) -> None:
        self._check(graph, f"{stage}_mask")
        scores = self.class_scores(graph, stage)
        mask = graph[f"{stage}_mask"] & (graph.y >= 0)
        loss = self.cross_entropy(scores, graph, mask)
        self.log(f"{stage}/loss", loss, batch_size=1, sync_dist=True)
        metrics.update(scores[mask], graph.y[mask])
        self.log_dict(metrics, prog_bar=True, batch_size=1)

    def validation_step(self, graph: Data, batch_idx: int) -> None:
        """Classifies the validation nodes."""
        self._evaluate(graph, self.val_metrics, "val")

    def test_step(self, graph: Data, batch_idx: int) -> None:
        """Classifies the test nodes."""
        self._evaluate(graph, self.test_metrics, "test")

    def predict_step(self, graph: Data, batch_idx: int) -> Tensor:
        """Classifies all nodes, and writes the classes to ``classes.txt`` in the log folder, one per line.

        Returns:
            Classes, int64, of shape ``[num_nodes]``.
        """
        self._check(graph)
        classes = self.class_scores(graph, "predict").argmax(1)
        write_classes(self.trainer, classes)
        return classes

    def _check(self, graph: Data, mask: str | None = None) -> None:
        """Checks that a graph fits the model and, given a mask, that mask's stage.

        Checks wait for the device, so each graph is checked only once.
        """
        needed = ("y", mask) if mask else ()
        present = [name for name in ("y", *MASKS) if name in graph or name in needed]
        sizes = self._num_features, self.num_classes
        if graph.get("checked") == Snapshot(graph, ["x", *present], sizes):
            return
        with torch.inference_mode(False):  # training cannot use tensors created in inference mode
            graph.apply(lambda tensor: tensor.clone() if tensor.is_inference() else tensor)
        owner = type(self).__name__
        num_nodes, num_features = checked_features(owner, graph.get("x")).shape
        if num_features != self._num_features:
            raise UserError(
                f"{owner}: num_features={self._num_features}, but the nodes have {num_features} features: set "
                f"num_features to {num_features}."
            )
        for name in present:
            if name == "y":
                check_labels(self, self.num_classes, checked_labels(owner, graph.get("y"), num_nodes))
            else:
                checked_mask(owner, name, graph.get(name), num_nodes)
        graph.checked = Snapshot(graph, ["x", *present], sizes)

    @contextmanager
    def _reproducible_draws(self, batch_idx: int) -> Iterator[None]:
        key = [torch.initial_seed(), self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield

    def configure_optimizers(self) -> Optimizer:
        """Returns Adam with an L2 penalty on the input layer."""
        decayed = {id(parameter) for parameter in self._input_parameters}
        others = [parameter for parameter in self.parameters() if id(parameter) not in decayed]
        groups: list[dict[str, Any]] = [{"params": self._input_parameters, "weight_decay": self.weight_decay}]
        return Adam([*groups, {"params": others}] if others else groups, lr=self.learning_rate)
