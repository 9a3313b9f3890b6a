"""Saving a run's configuration beside its logs."""

from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import SaveConfigCallback

from rbp_lightning.cli.whole_files import written_whole


class SaveConfigWithLogs(SaveConfigCallback):
    """Writes ``config.yaml`` into a run's folder.

    It overwrites the file of a training that is resumed in the same folder. It writes nothing into the current folder,
    where a ``config.yaml`` is the user's, and subcommands other than ``fit`` do not overwrite that of a training.

    Args:
        args: As for ``SaveConfigCallback``.
        subcommand: The subcommand.
        kwargs: As for ``SaveConfigCallback``.
    """

    def __init__(self, *args: Any, subcommand: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **{**kwargs, "overwrite": True})
        self.subcommand = subcommand

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Saves the configuration, unless that would overwrite one of another run.

        Raises:
            UserError: If it cannot be written; a previous file is then left unchanged.
        """
        log_dir = trainer.log_dir  # all ranks must ask together
        if log_dir is None or Path(log_dir).resolve() == Path.cwd() or self.already_saved:
            return
        path = Path(log_dir) / self.config_filename
        exists = trainer.strategy.broadcast(path.exists())
        if exists and self.subcommand not in ("fit", Path(log_dir).name):
            return
        if not trainer.is_global_zero:
            super().setup(trainer, pl_module, stage)
            return
        with written_whole(path) as unfinished:
            self.config_filename = unfinished.name
            try:
                super().setup(trainer, pl_module, stage)
            finally:
                self.config_filename = path.name
