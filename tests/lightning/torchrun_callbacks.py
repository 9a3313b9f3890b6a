"""A callback for trainings that ``torchrun`` starts."""

import os
import signal
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, Trainer


class KilledOnce(Callback):
    """Kills the last process in a step, once."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_start(self, trainer: Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        last = trainer.global_rank == trainer.world_size - 1
        if trainer.global_step == self.step and last and not Path("killed").exists():
            Path("killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
