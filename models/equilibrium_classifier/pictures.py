"""Pictures of images that are told wrong."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from matplotlib.figure import Figure
from torch import Tensor

from rbp_lightning.diagnostics.log_figure import log_figure

MOST, COLUMNS = 20, 10
"""Most images of a picture, and how many are beside each other."""

Wrong = tuple[Tensor, int, int]
"""An image of shape [channels, height, width], its label and the class that it was taken for."""


def titled(wrong: list[Wrong]) -> Figure:
    """Draws images, each below its label and the class that it was taken for.

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
    for panel, (image, label, taken) in zip(panels, wrong, strict=False):
        panel.imshow(image.movedim(0, -1).float().cpu().clamp(0, 1).numpy(), cmap="gray_r", vmin=0, vmax=1)
        panel.set_title(f"{label}, not {taken}", fontsize=8)
    return figure


class WrongImages(Callback):
    """Logs the first images of a test that are told wrong to the loggers, as ``test/wrong``, with their labels.

    With several processes they are those of the first one.
    """

    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forgets an earlier test."""
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
        """Keeps what is told wrong."""
        labels = batch["labels"]
        for index in (outputs != labels).nonzero()[:, 0][: MOST - len(self.wrong)]:
            self.wrong.append((batch["images"][index], int(labels[index]), int(outputs[index])))

    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws the picture."""
        if self.wrong:
            log_figure(trainer, "test/wrong", titled(self.wrong), trainer.global_step)
