"""An associative memory."""

from typing import Any, Literal

from lightning.pytorch import Callback
from torch import Tensor
from torch.nn.functional import l1_loss
from torchmetrics import MetricCollection
from torchmetrics.classification import BinaryHammingDistance, MultilabelExactMatch

from models.batches import BatchesOfOneKind, weight
from models.cosine_decay import adam_with_cosine_decay
from models.hopfield_cell import HopfieldCell
from models.recall_pictures import RecallPictures
from rbp_lightning import FixedPoint, GradientEstimator, NeumannRBP, UserError
from rbp_lightning.errors import check_count, check_number


class HopfieldMemory(BatchesOfOneKind):
    """Associative memory: a continuous Hopfield network trained to complete images (paper, section 4.1).

    The corrupted image is clamped to the input units and the network runs to its fixed point. The states of the output
    units are the recalled image: a pixel is on if its unit's state is positive. They are trained with an L1 loss
    against the clean image.

    Args:
        num_pixels: Number of pixels of an image, at least 2.
        num_hidden: Number of hidden units, at least 0.
        decay: a, in (0, 1]: fraction of its state that a unit loses per step.
        gain: b, above 0: slope of the activation sigmoid(b h).
        weight_scale: Standard deviation of the initial weights, at least 0.
        learning_rate: Adam's initial learning rate, above 0, with a cosine decay to 0 over the run. ``--optimizer`` on
            the command line, with or without ``--lr_scheduler``, replaces both.
        dynamics: ``"leaky"``, as in the paper, or ``"energy"``, with the same fixed points but a symmetric Jacobian
            there, for ``EquilibriumPropagation``.

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
        dynamics: Literal["leaky", "energy"] = "leaky",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        check_count(self, "num_pixels", num_pixels, 2)
        self.cell = HopfieldCell(num_pixels, num_hidden, decay, gain, weight_scale, dynamics)
        self.learning_rate = check_number(self, "learning_rate", learning_rate, 0.0, low_allowed=False)
        # A Trainer's estimator replaces it.
        self.estimator: GradientEstimator = NeumannRBP()
        metrics = MetricCollection(
            {"pixel_error": BinaryHammingDistance(), "exact_recall": MultilabelExactMatch(num_pixels)}
        )
        self.val_metrics = metrics.clone(prefix="val/")
        self.test_metrics = metrics.clone(prefix="test/")

    def forward(self, images: Tensor) -> FixedPoint:
        """Runs the network from rest to its fixed point.

        Args:
            images: Corrupted images of shape ``[batch, num_pixels]`` or ``[batch, height, width]``, pixels from 0 to 1.

        Returns:
            The fixed point. Its state has the shape ``[batch, num_free]``, hidden units first, then output units.

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
        """Returns the states of the output units, of shape ``[batch, num_pixels]``; a positive state is an on pixel.

        Args:
            fixed_point: The result of ``forward``.
        """
        state: Tensor = fixed_point.state
        return state[:, self.cell.num_hidden :]

    def batch_entries(self, stage: str) -> tuple[str, ...]:
        """Images: corrupted and, except in prediction, clean ones."""
        return ("corrupted",) if stage == "predict" else ("clean", "corrupted")

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Tensor:
        """Returns the L1 distance between the output units and the clean image, coded as -1 and 1."""
        fixed_point = self(batch["corrupted"])
        loss = l1_loss(self.outputs(fixed_point), 2 * batch["clean"].flatten(1) - 1)
        self.log("train/loss", loss, prog_bar=True)
        self.log("train/steps", float(fixed_point.steps))
        self.log("train/residual", fixed_point.residual.max())
        return loss

    def _evaluate(self, batch: dict[str, Tensor], metrics: MetricCollection, stage: str) -> Tensor:
        fixed_point = self(batch["corrupted"])
        outputs, clean = self.outputs(fixed_point), batch["clean"]
        size = weight(len(outputs))
        self.log(f"{stage}/loss", l1_loss(outputs, 2 * clean.flatten(1) - 1), batch_size=size, sync_dist=True)
        self.log(f"{stage}/steps", float(fixed_point.steps), batch_size=size, sync_dist=True)
        self.log(f"{stage}/residual", fixed_point.residual.mean(), batch_size=size, sync_dist=True)
        recalled = (outputs > 0).int()
        metrics.update(recalled, clean.flatten(1).int())
        self.log_dict(metrics, prog_bar=True)
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
            Pixels, 0.0 or 1.0, of the shape of the images.
        """
        recalled = self.outputs(self(batch["corrupted"])) > 0
        return recalled.float().reshape(batch["corrupted"].shape)

    def configure_callbacks(self) -> list[Callback]:
        """Adds pictures of the recall."""
        return [RecallPictures()]

    def configure_optimizers(self) -> Any:
        """Returns Adam with a cosine decay over the whole run.

        Raises:
            UserError: If the run's length is not limited.
        """
        return adam_with_cosine_decay(self, self.learning_rate)
