"""Logging of pictures and histograms to a Trainer's loggers and to files."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import CometLogger, MLFlowLogger, TensorBoardLogger, WandbLogger
from numpy.typing import NDArray
from torch import Tensor

if TYPE_CHECKING:  # both are slow to import
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

_SHOW_PICTURES = (TensorBoardLogger, WandbLogger, MLFlowLogger, CometLogger)


def can_draw() -> bool:
    """Whether matplotlib is installed; without it there are no plots."""
    return find_spec("matplotlib") is not None


def picture_folder(trainer: Trainer) -> Path | None:
    """Returns the folder for a run's pictures, or ``None`` without a logger; all processes must call it.

    Args:
        trainer: The Trainer.
    """
    return Path(trainer.log_dir) if trainer.loggers and trainer.log_dir is not None else None


def tensorboard_writers(trainer: Trainer) -> list[SummaryWriter]:
    """Returns the writers of a Trainer's TensorBoard loggers; an empty list in processes other than 0.

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


def log_figure(
    trainer: Trainer, name: str, picture: Figure | NDArray[np.uint8], step: int, folder: Path | None = None
) -> None:
    """Logs a picture to each logger of a Trainer that supports it: TensorBoard, W&B, MLflow and Comet.

    With ``folder``, ``val/recall`` is also written to ``recall.png`` there, replacing an earlier picture.

    Args:
        trainer: The Trainer; its process 0 logs.
        name: The picture's tag; no scalar may have the same.
        picture: A matplotlib figure, or pixels of shape ``[height, width, 3]``.
        step: The step.
        folder: The run's folder, from ``picture_folder``; ``None`` writes no file.
    """
    shown = any(isinstance(logger, _SHOW_PICTURES) for logger in trainer.loggers)
    if not trainer.is_global_zero or not (shown or folder is not None):
        return  # before the picture is drawn, which is slow
    pixels = picture if isinstance(picture, np.ndarray) else _pixels(picture)
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoardLogger):
            logger.experiment.add_image(name, pixels, step, dataformats="HWC")
        elif isinstance(logger, WandbLogger):
            logger.log_image(name, [pixels], step=step)
        elif isinstance(logger, MLFlowLogger):
            logger.experiment.log_image(logger.run_id, pixels, artifact_file=f"{name}/step_{step:06d}.png")
        elif isinstance(logger, CometLogger):
            logger.experiment.log_image(pixels, name=name, step=step)
    if folder is not None:
        from PIL import Image

        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{name.rpartition('/')[2]}.png")


def _pixels(figure: Figure) -> NDArray[np.uint8]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()


def log_histogram(trainer: Trainer, name: str, values: Tensor, step: int) -> None:
    """Logs a histogram to a Trainer's TensorBoard loggers.

    Args:
        trainer: The Trainer.
        name: The histogram's tag.
        values: The values.
        step: The step.
    """
    for writer in tensorboard_writers(trainer):
        writer.add_histogram(name, values, step)
