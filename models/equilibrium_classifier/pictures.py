"""A picture of misclassified images."""

from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from rbp_lightning.diagnostics.log_figure import log_figure, picture_folder

MAX_IMAGES, COLUMNS = 20, 10
"""The most images of a picture, and the number of images in a row."""

Wrong = tuple[Tensor, int, int]
"""An image of shape [channels, height, width], its label and its predicted class."""


def titled(wrong: list[Wrong]) -> Figure:
    """Draws images, each titled with its label and its predicted class.

    Args:
        wrong: The images, at least one.

    Example:
        >>> [axes.get_title() for axes in titled([(torch.zeros(1, 8, 8), 4, 9)]).axes if axes.images]
        ['4, not 9']
    """
    figure = Figure(figsize=(COLUMNS, 1.5 * -(-len(wrong) // COLUMNS)))
    panels = list(figure.subplots(-(-len(wrong) // COLUMNS), COLUMNS, squeeze=False).flat)
    for panel in panels:
        panel.axis("off")
    for panel, (image, label, predicted) in zip(panels, wrong, strict=False):
        panel.imshow(image.movedim(0, -1).float().cpu().clamp(0, 1).numpy(), cmap="gray_r", vmin=0, vmax=1)
        panel.set_title(f"{label}, not {predicted}", fontsize=8)
    return figure


class WrongImages(Callback):
    """Logs the first misclassified images of a test, with their labels, as ``test/wrong`` and as ``wrong.png``.

    With several processes, they are those of process 0.
    """

    def __init__(self) -> None:
        self._folder: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the log folder, for which all processes have to ask."""
        self._folder = picture_folder(trainer)

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Discards an earlier test."""
        self.wrong: list[Wrong] = []

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Collects misclassified images."""
        labels = batch["labels"]
        for index in (outputs != labels).nonzero()[:, 0][: MAX_IMAGES - len(self.wrong)]:
            self.wrong.append((batch["images"][index], int(labels[index]), int(outputs[index])))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the picture."""
        if self.wrong:
            log_figure(trainer, "test/wrong", titled(self.wrong), trainer.global_step, self._folder)
