"""The command line's Trainer."""

from pathlib import Path

from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rbp_lightning.diagnostics.audit import AuditTrainer


class RunTrainer(AuditTrainer):
    """An ``AuditTrainer`` that gives each run a folder of its own, whatever its logger.

    Lightning's ``log_dir`` is shared by all runs of a logger such as ``WandbLogger``, whereas checkpoints go into a
    folder for each run. Here both are in the same one.

    Example:
        >>> quiet = {"enable_checkpointing": False, "enable_progress_bar": False}
        >>> RunTrainer(logger=False, default_root_dir="runs", **quiet).log_dir
        'runs'
    """

    @property
    def log_dir(self) -> str | None:
        """The folder of this run, which every rank has to ask for together."""
        logger = self.loggers[0] if self.loggers else None
        if logger is None or isinstance(logger, TensorBoardLogger | CSVLogger) or logger.save_dir is None:
            return super().log_dir
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder: str = self.strategy.broadcast(str(Path(logger.save_dir) / str(logger.name) / version))
        return folder
