"""Keeping predicted classes."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor


def write_classes(trainer: Trainer, classes: Tensor) -> None:
    """Leaves predicted classes in ``classes.txt`` of the log folder, one in a line.

    Args:
        trainer: The Trainer; the first of its processes writes, where there is a log folder.
        classes: Classes, integers of shape ``[n]``, of all that there is to predict.
    """
    folder = trainer.log_dir  # every rank has to ask
    if folder is not None and trainer.is_global_zero:
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.savetxt(Path(folder) / "classes.txt", classes.cpu().numpy(), fmt="%d")
        rank_zero_info(f"Classes: {Path(folder) / 'classes.txt'}")
