"""Folders that belong to one run at a time."""

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
except ImportError:  # Windows, where runs that share a folder are not told from each other
    fcntl = None  # type: ignore[assignment]


class Claims:
    """The folders that a run writes to, which no other run can have until this one has ended or released them.

    Args:
        trainer: The Trainer whose loggers and checkpoints write there.
        checkpoints: Whether it is to write checkpoints.

    Raises:
        UserError: If a folder cannot be written to, or is another run's.
    """

    def __init__(self, trainer: Trainer, checkpoints: bool) -> None:
        self._made: list[Path] = []
        self._locks: list[int] = []
        kept = [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
        try:
            for logger in trainer.loggers:
                if isinstance(logger, TensorBoardLogger | CSVLogger):
                    self._claim(self._folder_of(logger), "trainer.logger", "save_dir")
            if checkpoints and not trainer.loggers and any(callback.dirpath is None for callback in kept):
                folder = Path(trainer.default_root_dir, "checkpoints")
                self._claim(folder, "trainer.default_root_dir", "it")
        except UserError:
            self.release()
            raise

    def release(self) -> None:
        """Gives the folders back, and removes those that were made and nothing was written to."""
        while self._locks:
            lock = self._locks.pop()
            fcntl.flock(lock, fcntl.LOCK_UN)  # processes that were forked have it, too
            os.close(lock)
        while self._made:
            with contextlib.suppress(OSError):
                self._made.pop().rmdir()

    def _folder_of(self, logger: TensorBoardLogger | CSVLogger) -> Path:
        """The folder of a logger's run; of two runs that start at once, each makes one with a number of its own."""
        while logger._version is None:
            folder = Path(logger.log_dir)  # sets the next version
            with contextlib.suppress(OSError, ValueError):  # which claiming it tells of
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
        except (OSError, ValueError) as error:  # a path that cannot be one is a ValueError
            reason = f"cannot write to {folder!s:.100} ({error.args[-1]})"
            raise UserError(f"{owner}: {reason}: set {remedy} to another folder.") from error
        if fcntl is None:
            return
        # A lock of the folder itself leaves no file, and ends with the process however that ends.
        lock = os.open(folder, os.O_RDONLY)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            os.close(lock)
            raise UserError(
                f"{owner}: another run is writing to {folder}: wait for its end, or give this one another folder."
            ) from error
        except OSError:  # a file system without locks
            os.close(lock)
        else:
            self._locks.append(lock)
