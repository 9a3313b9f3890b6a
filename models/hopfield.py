"""Associative memory."""

import math
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from torch import Tensor
from torch.nn.functional import l1_loss
from torch.optim.lr_scheduler import LambdaLR
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryHammingDistance, MultilabelExactMatch

from models.hopfield_cell import HopfieldCell
from models.recall_pictures import RecallPictures
from rbp_lightning import FixedPoint, GradientEstimator, NeumannRBP, UserError
from rbp_lightning.errors import check_number


class HopfieldMemory(LightningModule):
    """Associative memory: a continuous Hopfield network trained to complete images (paper, section 4.1).

    The corrupted image is clamped to the input units and the network runs to its fixed point; the states of the output
    units are the recalled image, trained with an L1 loss against the clean one and read as on where they are positive.

    Args:
        num_pixels: Number of pixels of an image.
        num_hidden: Number of hidden units.
        decay: a, in (0, 1]: the share of its state that a unit loses in a step.
        gain: b, above 0: slope of the activity sigmoid(b h).
        weight_scale: Standard deviation of the initial weights.
        learning_rate: Adam's first learning rate, decayed to 0 over the run along a cosine. The command line's
            ``--optimizer``, with or without ``--lr_scheduler``, takes the place of both.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> memory = HopfieldMemory(num_pixels=4, num_hidden=8)
        >>> memory(torch.tensor([[0.0, 1.0, 1.0, 0.0]])).status.value
        'converged'
    """

    def __init__(
        self,
        num_pixels: int = 64,
        num_hidden: int = 256,
        decay: float = 0.5,
        gain: float = 2.0,
        weight_scale: float = 0.02,
        learning_rate: float = 3e-3,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.cell = HopfieldCell(num_pixels, num_hidden, decay, gain, weight_scale)
        self.learning_rate = check_number(self, "learning_rate", learning_rate, 0.0, low_allowed=False)
        # A Trainer's estimator takes its place.
        self.estimator: GradientEstimator = NeumannRBP()
        metrics = MetricCollection(
            {"pixel_error": BinaryHammingDistance(), "exact_recall": MultilabelExactMatch(num_pixels)}
        )
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")

    def forward(self, images: Tensor) -> FixedPoint:
        """Runs the network from rest to its fixed point.

        Args:
            images: Corrupted images, pixels 0 to 1, of shape ``[batch, num_pixels]`` or ``[batch, height, width]``.

        Returns:
            The fixed point; its state holds the states of hidden and output units, ``[batch, num_free]``.

        Raises:
            UserError: If the images do not have ``num_pixels`` pixels.
        """
        images = images.flatten(1)
        if images.shape[1] != self.cell.num_pixels:
            raise UserError(
                f"HopfieldMemory: num_pixels={self.cell.num_pixels}, but the images have {images.shape[1]} pixels: "
                f"set num_pixels to {images.shape[1]}."
            )
        at_rest = images.new_zeros(len(images), self.cell.num_free)
        fixed_point: FixedPoint = self.estimator(self.cell.clamp(images), at_rest, batch_dims=1)
        return fixed_point

    def outputs(self, fixed_point: FixedPoint) -> Tensor:
        """States of the output units, ``[batch, num_pixels]``; a pixel is on where they are positive."""
        state: Tensor = fixed_point.state
        return state[:, self.cell.num_hidden :]

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """L1 distance between the output units and the clean image, coded as -1 and 1."""
        fixed_point = self(batch["corrupted"])
        loss = l1_loss(self.outputs(fixed_point), 2 * batch["clean"].flatten(1) - 1)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/steps", float(fixed_point.steps))
        self.log("train/residual", fixed_point.residual.max())
        return loss

    def _evaluate(self, batch: dict[str, Tensor], metrics: MetricCollection, stage: str) -> Tensor:
        fixed_point = self(batch["corrupted"])
        outputs, clean = self.outputs(fixed_point), batch["clean"]
        size = len(outputs)
        self.log(f"{stage}/loss", l1_loss(outputs, 2 * clean.flatten(1) - 1), batch_size=size, sync_dist=True)
        self.log(f"{stage}/steps", float(fixed_point.steps), batch_size=size, sync_dist=True)
        self.log(f"{stage}/residual", fixed_point.residual.mean(), batch_size=size, sync_dist=True)
        recalled = (outputs > 0).int()
        metrics.update(recalled, clean.flatten(1).int())
        self.log_dict(metrics, prog_bar=True)
        if stage == "val":
            self.log("hp_metric", metrics["exact_recall"])  # what TensorBoard's HPARAMS compares runs by
        return recalled.reshape(clean.shape).float()

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Recalls corrupted images and compares them with the clean ones."""
        return self._evaluate(batch, self.val_metrics, "val")

    def test_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Recalls corrupted images and compares them with the clean ones."""
        return self._evaluate(batch, self.test_metrics, "test")

    def predict_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Recalls corrupted images.

        Returns:
            Pixels, 0.0 or 1.0, in the shape of the images.
        """
        recalled = self.outputs(self(batch["corrupted"])) > 0
        return recalled.float().reshape(batch["corrupted"].shape)

    def configure_callbacks(self) -> list[Callback]:
        """Adds pictures of the recall."""
        return [RecallPictures()]

    def configure_optimizers(self) -> Any:
        """Adam with a cosine decay over the whole run."""
        optimizer = torch.optim.Adam(self.parameters(), lr=self.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        if steps == float("inf"):
            raise UserError("HopfieldMemory: the learning rate's decay needs max_epochs or max_steps: set one of them.")
        # Unlike CosineAnnealingLR, which keeps the length of the run it was made for, this follows a run that is
        # continued to more epochs.
        scheduler = LambdaLR(optimizer, lambda step: 0.5 + 0.5 * math.cos(math.pi * min(step / steps, 1)))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
