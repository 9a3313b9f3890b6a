"""Keeping a run's configuration beside its logs."""

from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback


class SaveConfigWithLogs(SaveConfigCallback):
    """Writes ``config.yaml`` into the logger's folder, over that of a run which is continued there.

    Without a logger it writes nothing: the folder would be the current one, where a ``config.yaml`` is the user's.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "overwrite": True})

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves the configuration where there is a logger."""
        if trainer.logger is not None:
            super().setup(trainer, pl_module, stage)
