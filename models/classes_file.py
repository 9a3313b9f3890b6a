"""Writing predicted classes to a file."""

from pathlib import Path

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor


def write_classes(trainer: Trainer, classes: Tensor) -> None:
    """Writes predicted classes to ``classes.txt`` in the log folder, if there is one, one class per line.

    Args:
        trainer: The Trainer; all its processes must call this, and process 0 writes.
        classes: All predicted classes, integers of shape ``[n]``.
    """
    folder = trainer.log_dir  # all processes must ask together
    if folder is not None and trainer.is_global_zero:
        Path(folder).mkdir(parents=True, exist_ok=True)
        np.savetxt(Path(folder) / "classes.txt", classes.cpu().numpy(), fmt="%d")
        rank_zero_info(f"Classes: {Path(folder) / 'classes.txt'}")
