"""Locks on the folders of a run, so that no other run writes to them."""

import contextlib
import os
import tempfile
from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from rbp_lightning.errors import UserError

try:
    import fcntl
except ImportError:  # Windows, where folders are not locked
    fcntl = None  # type: ignore[assignment]


class Claims:
    """Locks the folders that a run writes to, until it releases them or ends.

    Args:
        trainer: The Trainer whose loggers and checkpoints write there.
        checkpoints: Whether it will write checkpoints.

    Raises:
        UserError: If a folder cannot be written to, or another run has locked it.
    """

    def __init__(self, trainer: Trainer, checkpoints: bool) -> None:
        self._made: list[Path] = []
        self._locks: list[int] = []
        callbacks = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        try:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger | CSVLogger):
                    self._claim(self._folder_of(logger), "trainer.logger", "save_dir")
            if checkpoints and not trainer.loggers and any(callback.dirpath is None for callback in callbacks):
                folder = Path(trainer.default_root_dir, "checkpoints")
                self._claim(folder, "trainer.default_root_dir", "it")
        except UserError:
            self.release()
            raise

    def release(self) -> None:
        """Releases the folders, and removes those that it created and nothing was written to."""
        while self._locks:
            lock = self._locks.pop()
            fcntl.flock(lock, fcntl.LOCK_UN)  # forked processes share the lock
            os.close(lock)
        while self._made:
            with contextlib.suppress(OSError):
                self._made.pop().rmdir()

    def _folder_of(self, logger: TensorBoardLogger | CSVLogger) -> Path:
        """Returns the folder of a logger's run; two runs that start at once get different version numbers."""
        while logger._version is None:
            folder = Path(logger.log_dir)  # sets the next version
            with contextlib.suppress(OSError, ValueError):  # _claim reports it
                self._make(folder.parent)
                try:
                    folder.mkdir()
                    self._made.append(folder)
                except FileExistsError:
                    logger._version = None if folder.is_dir() else logger._version
        return Path(logger.log_dir)

    def _make(self, folder: Path) -> None:
        missing = [parent for parent in (folder, *folder.parents) if not parent.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        self._made += reversed(missing)

    def _claim(self, folder: Path, owner: str, remedy: str) -> None:
        try:
            self._make(folder)
            with tempfile.TemporaryFile(dir=folder):
                pass
        except (OSError, ValueError) as error:  # a ValueError for an invalid path
            reason = f"cannot write to {folder!s:.100} ({error.args[-1]})"
            raise UserError(f"{owner}: {reason}: set {remedy} to another folder.") from error
        if fcntl is None:
            return
        # A lock on the folder itself leaves no file behind, and ends with the process in any case.
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise UserError(
                f"{owner}: another run is writing to {folder}: wait until it ends, or use another folder."
            ) from error
        except OSError:  # a file system without locks
            os.close(lock)
        else:
            self._locks.append(lock)
