"""Pictures in TensorBoard."""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor

if TYPE_CHECKING:  # both are slow to import
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter


def can_draw() -> bool:
    """Whether matplotlib is installed: the library does without it, and without pictures then."""
    return find_spec("matplotlib") is not None


def tensorboard_writers(trainer: Trainer) -> list[SummaryWriter]:
    """Returns the writer of each of a Trainer's TensorBoard loggers.

    Only the process that logs has any; the list is empty in all the others.

    Args:
        trainer: The Trainer.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> tensorboard_writers(Trainer(logger=False, barebones=True))
        []
    """
    if not trainer.is_global_zero:
        return []
    return [logger.experiment for logger in trainer.loggers if isinstance(logger, TensorBoardLogger)]


def log_figure(trainer: Trainer, name: str, figure: Figure | Tensor, step: int) -> None:
    """Logs a picture to each of a Trainer's TensorBoard loggers. Without one it does nothing.

    Args:
        trainer: The Trainer.
        name: The picture's tag.
        figure: A matplotlib figure, or a grey image of shape ``[height, width]`` with pixels from 0 to 1.
        step: The step to log it at.
    """
    for writer in tensorboard_writers(trainer):
        if isinstance(figure, Tensor):
            writer.add_image(name, figure, step, dataformats="HW")
        else:
            # Closing is for figures that pyplot keeps track of.
            writer.add_figure(name, figure, step, close=False)


def log_histogram(trainer: Trainer, name: str, values: Tensor, step: int) -> None:
    """Logs a histogram to each of a Trainer's TensorBoard loggers. Without one it does nothing.

    Args:
        trainer: The Trainer.
        name: The histogram's tag.
        values: What it is of.
        step: The step to log it at.
    """
    for writer in tensorboard_writers(trainer):
        writer.add_histogram(name, values, step)
