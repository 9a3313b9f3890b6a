"""The Trainer of the command line."""

from pathlib import Path
from typing import Any, cast

from jsonargparse import Namespace
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rbp_lightning.cli.hparams_tab import HParamsTab, listing_loggers
from rbp_lightning.cli.interruption import Interruption, SignalConnector
from rbp_lightning.cli.resuming import ExactResume
from rbp_lightning.cli.whole_files import AtomicCheckpointIO
from rbp_lightning.diagnostics.audit import AuditTrainer
from rbp_lightning.errors import UserError

MAXIMUM = {"devices": 512, "num_nodes": 100_000}
"""The most processes to start on a machine, and the most machines to wait for."""

MINIMUM = {"accumulate_grad_batches": 1, "check_val_every_n_epoch": 1, "log_every_n_steps": 0}
"""Numbers that Lightning divides by without a check."""


def check_trainer(trainer: Namespace) -> None:
    """Rejects numbers that Lightning accepts although no training can use them.

    Args:
        trainer: The Trainer's configuration.

    Raises:
        UserError: If there is such a number.
    """
    for name, most in MAXIMUM.items():
        given = str(trainer.get(name))
        if given.isdecimal() and int(given) > most:
            raise UserError(f"--trainer.{name}={given} is above the limit of {most}: lower it.")
    for name, least in MINIMUM.items():
        given = trainer.get(name)
        if isinstance(given, int) and given < least:
            raise UserError(f"--trainer.{name}={given} must be at least {least}: raise it.")


class RunTrainer(AuditTrainer):
    """An ``AuditTrainer`` that gives each run a folder of its own and keeps its progress if it is interrupted.

    With a logger such as ``WandbLogger``, Lightning's ``log_dir`` is shared by all runs, while checkpoints go into a
    folder per run; here both use the folder of the run. Checkpoints are written atomically, unless the Trainer is given
    a ``CheckpointIO``.

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
            self.strategy.checkpoint_io = AtomicCheckpointIO()
        self._signal_connector = SignalConnector(self)
        self._interruption = Interruption()
        for logger in listing_loggers(self):
            logger._default_hp_metric = False  # HParamsTab lists the run
        cast(Any, self).callbacks[:0] = [ExactResume(), self._interruption, HParamsTab()]

    @property
    def received_sigterm(self) -> bool:
        """Always ``False``: Lightning asks after a batch, where a training can end, so it ends here.

        Raises:
            Interrupted: If the processes have agreed to end, and no validation is running.
        """
        if self._interruption.agreed and not self.validating:
            self._interruption.end(self)
        return False

    @property
    def log_dir(self) -> str | None:
        """The folder of this run; all ranks must ask for it together."""
        logger = self.loggers[0] if self.loggers else None
        if logger is None or isinstance(logger, TensorBoardLogger | CSVLogger) or logger.save_dir is None:
            return super().log_dir
        version = logger.version if isinstance(logger.version, str) else f"version_{logger.version}"
        folder: str = self.strategy.broadcast(str(Path(logger.save_dir) / str(logger.name) / version))
        return folder
