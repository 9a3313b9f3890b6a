"""What the classifiers of a graph's nodes share."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim import Adam, Optimizer
from torch_geometric.data import Data
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassF1Score

from models.classes_file import write_classes
from models.labels import check_labels
from rbp_lightning import UserError
from rbp_lightning.errors import check_number


class NodeClassifier(LightningModule, ABC):
    """Trains and evaluates class scores of the nodes of a graph.

    A batch is a graph with ``x``, ``edge_index``, ``y`` and the masks ``train_mask``, ``val_mask`` and ``test_mask``;
    each stage looks at the nodes of its mask. What a training step draws at random depends on the seed, the epoch, the
    batch and the process alone, so a resumed run draws what it would have drawn.

    Args:
        input_layer: The layer that reads the features.
        num_classes: Number of classes.
        learning_rate: Adam's learning rate, above 0.
        weight_decay: L2 penalty on the input layer, at least 0 (Kipf and Welling 2017). The command line's
            ``--optimizer`` takes the place of both.

    Raises:
        UserError: If an argument is out of its range.
    """

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
        """Class scores (logits) of all nodes.

        Args:
            graph: The graph.
            stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.

        Returns:
            Scores, of shape ``[num_nodes, num_classes]``.
        """

    def training_loss(self, graph: Data) -> Tensor:
        """Mean cross-entropy of the labelled training nodes."""
        return self.cross_entropy(self.class_scores(graph, "train"), graph, graph.train_mask)

    def cross_entropy(self, scores: Tensor, graph: Data, mask: Tensor) -> Tensor:
        """Mean cross-entropy of the nodes of a mask that have a label; 0 where there is none.

        Args:
            scores: Class scores (logits), of shape ``[num_nodes, num_classes]``.
            graph: The graph.
            mask: Which nodes, bool, of shape ``[num_nodes]``.
        """
        mask = mask & (graph.y >= 0)
        total = cross_entropy(scores[mask].float(), graph.y[mask], reduction="sum")
        return total / mask.sum().clamp_min(1)

    def training_step(self, graph: Data, batch_idx: int) -> Tensor:
        """Loss of the training nodes."""
        self._check(graph)
        with self._own_draws(batch_idx):
            loss = self.training_loss(graph)
        self.log("train/loss", loss, prog_bar=True, batch_size=1)
        return loss

    def _evaluate(self, graph: Data, mask: Tensor, metrics: MetricCollection, stage: str) -> None:
        self._check(graph)
        scores = self.class_scores(graph, stage)
        mask = mask & (graph.y >= 0)
        loss = self.cross_entropy(scores, graph, mask)
        self.log(f"{stage}/loss", loss, batch_size=1, sync_dist=True)
        metrics.update(scores[mask], graph.y[mask])
        self.log_dict(metrics, prog_bar=True, batch_size=1)
        if stage == "val":
            self.log("hp_metric", metrics["accuracy"], batch_size=1)  # what TensorBoard's HPARAMS compares runs by

    def validation_step(self, graph: Data, batch_idx: int) -> None:
        """Classifies the validation nodes."""
        self._evaluate(graph, graph.val_mask, self.val_metrics, "val")

    def test_step(self, graph: Data, batch_idx: int) -> None:
        """Classifies the test nodes."""
        self._evaluate(graph, graph.test_mask, self.test_metrics, "test")

    def predict_step(self, graph: Data, batch_idx: int) -> Tensor:
        """Classifies all nodes, and leaves the classes in ``classes.txt`` of the log folder, a line for each node.

        Returns:
            Classes, int64, of shape ``[num_nodes]``.
        """
        self._check(graph)
        classes = self.class_scores(graph, "predict").argmax(1)
        write_classes(self.trainer, classes)
        return classes

    def _check(self, graph: Data) -> None:
        features = graph.x.shape[1]
        if features != self._num_features:
            raise UserError(
                f"{type(self).__name__}: num_features={self._num_features}, but the nodes have {features} features: "
                f"set num_features to {features}."
            )
        check_labels(self, self.num_classes, graph.y)

    @contextmanager
    def _own_draws(self, batch_idx: int) -> Iterator[None]:
        key = [torch.initial_seed(), self.current_epoch, batch_idx, self.global_rank]
        seed = int(np.random.SeedSequence(key).generate_state(1, np.uint64)[0])
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):
            torch.manual_seed(seed)
            yield

    def configure_optimizers(self) -> Optimizer:
        """Adam, with an L2 penalty on the input layer."""
        decayed = {id(parameter) for parameter in self._input_parameters}
        others = [parameter for parameter in self.parameters() if id(parameter) not in decayed]
        groups: list[dict[str, Any]] = [{"params": self._input_parameters, "weight_decay": self.weight_decay}]
        return Adam([*groups, {"params": others}] if others else groups, lr=self.learning_rate)
