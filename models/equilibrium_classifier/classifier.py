"""A deep equilibrium classifier of images."""

from typing import Any

from lightning.pytorch import Callback
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassAccuracy

from models.batches import BatchesOfOneKind, weight
from models.cell_config import save_with_cell
from models.cosine_decay import adam_with_cosine_decay
from models.equilibrium_classifier.cell import ImageCell
from models.equilibrium_classifier.pictures import WrongImages
from models.labels import check_labels
from models.predicted_classes import PredictedClasses
from rbp_lightning import FixedPoint, GradientEstimator, NeumannRBP, UserError
from rbp_lightning.errors import check_instance, check_number


class EquilibriumClassifier(BatchesOfOneKind):
    """Classifies an image by the fixed point of a cell into which the image is injected at every step.

    It is a deep equilibrium model (Bai, Kolter and Koltun, NeurIPS 2019), whose gradient the estimator computes.

    Args:
        cell: The update of the state, and the readout.
        learning_rate: Adam's initial learning rate, above 0, with a cosine decay to 0 over the run. ``--optimizer`` on
            the command line, with or without ``--lr_scheduler``, replaces both.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> from models import ConvolutionalImageCell
        >>> classifier = EquilibriumClassifier(ConvolutionalImageCell(num_hidden=8))
        >>> classifier.estimator = JFB(Picard(tol=1e-3))
        >>> classifier(torch.rand(4, 1, 28, 28)).status.value
        'converged'
    """

    def __init__(self, cell: ImageCell, learning_rate: float = 3e-3) -> None:
        super().__init__()
        save_with_cell(self, cell)
        self.cell = check_instance(self, "cell", cell, ImageCell, "one, such as ConvolutionalImageCell()")
        self.learning_rate = check_number(self, "learning_rate", learning_rate, 0.0, low_allowed=False)
        # A Trainer's estimator replaces it.
        self.estimator: GradientEstimator = NeumannRBP()
        self.val_accuracy, self.test_accuracy = (
            MulticlassAccuracy(cell.num_classes, average="micro") for _ in ("val", "test")
        )

    def forward(self, images: Tensor) -> FixedPoint:
        """Iterates the cell from 0.

        Args:
            images: The images, of shape ``[batch, num_channels, height, width]``.

        Raises:
            UserError: If the images have another number of channels.
        """
        if images.dim() != 4 or images.shape[1] != self.cell.num_channels:
            raise UserError(
                f"{type(self.cell).__name__}: num_channels={self.cell.num_channels}, but the images have the shape "
                f"{list(images.shape)}: set num_channels to their second number."
            )
        fixed_point: FixedPoint = self.estimator(*self.cell.start(images), batch_dims=1)
        return fixed_point

    def batch_entries(self, stage: str) -> tuple[str, ...]:
        """Images with labels or, in prediction, indices."""
        return ("images", "index") if stage == "predict" else ("images", "labels")

    def _score(self, batch: dict[str, Tensor], stage: str) -> tuple[Tensor, Tensor]:
        """Returns the class scores and the mean cross-entropy of a batch, and logs the solve."""
        check_labels(self.cell, self.cell.num_classes, batch["labels"])
        fixed_point = self(batch["images"])
        scores = self.cell.scores(fixed_point.state)
        loss = cross_entropy(scores, batch["labels"])
        options: dict[str, Any] = {"batch_size": weight(len(scores)), "sync_dist": stage != "train"}
        self.log(f"{stage}/loss", loss, prog_bar=stage == "train", **options)
        self.log(f"{stage}/steps", float(fixed_point.steps), **options)
        self.log(f"{stage}/residual", fixed_point.residual.max(), **options)
        return scores, loss

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Returns the mean cross-entropy."""
        return self._score(batch, "train")[1]

    def _evaluate(self, batch: dict[str, Tensor], accuracy: MulticlassAccuracy, stage: str) -> Tensor:
        scores, _ = self._score(batch, stage)
        accuracy.update(scores, batch["labels"])
        self.log(f"{stage}/accuracy", accuracy, prog_bar=True)
        return scores.argmax(1)

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Classifies images and compares the classes with the labels."""
        return self._evaluate(batch, self.val_accuracy, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Classifies images and compares the classes with the labels."""
        return self._evaluate(batch, self.test_accuracy, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Classifies images; a callback writes the classes to ``classes.txt`` in the log folder, one per line.

        Returns:
            Classes, int64 of shape ``[batch]``.
        """
        return self.cell.scores(self(batch["images"]).state).argmax(1)

    def configure_callbacks(self) -> list[Callback]:
        """Adds callbacks that write predicted classes and log misclassified images."""
        return [PredictedClasses(), WrongImages()]

    def configure_optimizers(self) -> Any:
        """Returns Adam with a cosine decay over the whole run.

        Raises:
            UserError: If the run's length is not limited.
        """
        return adam_with_cosine_decay(self, self.learning_rate)
