"""Evaluation of the network of the last inner training."""

from lightning.pytorch import Callback
from torch import Tensor, nn
from torchmetrics import MetricCollection
from torchmetrics.classification import MulticlassAccuracy

from models.batches import BatchesOfOneKind, weight
from models.hyperparameter_optimization.checks import check_examples
from models.hyperparameters import Examples
from models.inner_training import InnerObjective
from models.predicted_classes import PredictedClasses


class TrainedClassifier(BatchesOfOneKind):
    """Validates, tests and predicts with a network that a subclass trains.

    Attributes:
        trained: The network.
        objective: The network's loss.
        num_classes: Number of classes.
    """

    trained: nn.Module
    objective: InnerObjective
    num_classes: int

    def make_metrics(self) -> None:
        """Creates the metrics, once the number of classes is known."""
        metrics = MetricCollection({"accuracy": MulticlassAccuracy(self.num_classes, average="micro")})
        self.val_metrics, self.test_metrics = metrics.clone(prefix="val/"), metrics.clone(prefix="test/")

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores (logits) of the last trained network, of shape ``[batch, num_classes]``."""
        scores: Tensor = self.trained(images)
        return scores

    def _evaluate(self, examples: Examples, metrics: MetricCollection, stage: str) -> None:
        check_examples(self, self.num_classes, examples)
        size = len(examples["labels"])
        loss = self.objective.plain(dict(self.trained.named_parameters()), examples, size)
        metrics.update(self(examples["images"]), examples["labels"])
        self.log(f"{stage}/loss", loss, batch_size=weight(size), sync_dist=True)
        self.log_dict(metrics, prog_bar=True, batch_size=size)

    def batch_entries(self, stage: str) -> tuple[str, ...]:
        """Whole splits in training, labelled images in evaluation."""
        return ("train", "val") if stage == "train" else ("images", "index" if stage == "predict" else "labels")

    def validation_step(self, batch: Examples, batch_idx: int) -> None:
        """Classifies validation images with the last trained network."""
        self._evaluate(batch, self.val_metrics, "val")

    def test_step(self, batch: Examples, batch_idx: int) -> None:
        """Classifies test images with the last trained network."""
        self._evaluate(batch, self.test_metrics, "test")

    def predict_step(self, batch: Examples, batch_idx: int) -> Tensor:
        """Classifies images.

        Returns:
            Classes, int64, of shape ``[batch]``.
        """
        classes: Tensor = self(batch["images"]).argmax(1)
        return classes

    def configure_callbacks(self) -> list[Callback]:
        """Adds a callback that writes predicted classes."""
        return [PredictedClasses()]
