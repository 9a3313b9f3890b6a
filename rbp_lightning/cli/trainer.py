"""The command line's Trainer."""

from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rbp_lightning.cli.interruption import Interruption, SignalConnector
from rbp_lightning.cli.resuming import ExactResume
from rbp_lightning.cli.whole_files import WholeFiles
from rbp_lightning.diagnostics.audit import AuditTrainer
from rbp_lightning.errors import UserError

MOST = {"devices": 512, "num_nodes": 100_000}
"""Most processes that a machine is asked to start, and most machines that are waited for."""

LEAST = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0}
"""What Lightning divides by, unchecked."""


def check_trainer(trainer: Namespace) -> None:
    """Refuses numbers that Lightning lets pass and that no training can be meant by.

    Args:
        trainer: The Trainer's configuration.

    Raises:
        UserError: If there is one.
    """
    for name, most in MOST.items():
        given = str(trainer.get(name))
        if given.isdecimal() and int(given) > most:
            raise UserError(f"--trainer.{name}={given} is above the limit of {most}: lower it.")
    for name, least in LEAST.items():
        given = trainer.get(name)
        if isinstance(given, int) and given < least:
            raise UserError(f"--trainer.{name}={given} must be at least {least}: raise it.")


class RunTrainer(AuditTrainer):
    """An ``AuditTrainer`` whose runs have a folder of their own and lose nothing when they are interrupted.

    Lightning's ``log_dir`` is shared by all runs of a logger such as ``WandbLogger``, whereas checkpoints go into a
    folder for each run. Here both are in the same one. Checkpoints are written whole or not at all, unless the Trainer
    is given a ``CheckpointIO``.

    Args:
        args: As for ``Trainer``.
        kwargs: As for ``Trainer``.

    Example:
        >>> quiet = {"enable_checkpointing": False, "enable_progress_bar": False}
        >>> RunTrainer(logger=False, default_root_dir="runs", **quiet).log_dir
        'runs'
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if type(self.strategy.checkpoint_io) is TorchCheckpointIO:
            self.strategy.checkpoint_io = WholeFiles()
        self._signal_connector = SignalConnector(self)
        self._interruption = Interruption()
        cast(Any, self).callbacks[:0] = [ExactResume(), self._interruption]

    @property
    def received_sigterm(self) -> bool:
        """Never: Lightning asks for it where a training can be ended after a batch, so that it ends here.

        Raises:
            Interrupted: If the training was told to end, and no validation is under way.
        """
        if self._interruption.agreed and not self.validating:
            self._interruption.end(self)
        return False

    @property
    def log_dir(self) -> str | None:
        """The folder of this run, which every rank has to ask for together."""
        logger = self.loggers[0] if self.loggers else None
        if logger is None or isinstance(logger, TensorBoardLogger | CSVLogger) or logger.save_dir is None:
            return super().log_dir
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder: str = self.strategy.broadcast(str(Path(logger.save_dir) / str(logger.name) / version))
        return folder
