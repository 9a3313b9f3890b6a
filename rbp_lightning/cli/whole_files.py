"""Files that are written whole or not at all."""

import contextlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from rbp_lightning.errors import UserError


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """Lets a file be written beside its place and then puts it there; until then the previous one stays.

    What a killed process has left unfinished is overwritten by the next one that writes the same file.

    Args:
        path: The file, whose folder is made where it is missing.

    Yields:
        Where to write it.

    Raises:
        UserError: If it cannot be written, such as on a disk that is full.
    """
    # On the same file system, so that it can be renamed, and with a name that no search for checkpoints finds.
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
        with contextlib.suppress(OSError):  # not every file system can do it
            _sync(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): make room there, or give the run another folder. What "
            "was there before is as it was."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)  # a full disk needs the room


class WholeFiles(TorchCheckpointIO):
    """Writes checkpoints whole or not at all, wherever the temporary folder is.

    Lightning's own writes into the temporary folder and moves the file from there, which is a copy where that is on
    another file system: a process that is killed then leaves neither the new checkpoint nor the one before.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: What it holds.
            path: Its file; one that is not local is left to Lightning.
            storage_options: Not supported, as in Lightning.

        Raises:
            UserError: If the file cannot be written.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # torch.save does not say why a file cannot be written
        torch.save(checkpoint, content)
        with written_whole(Path(path)) as unfinished:
            unfinished.write_bytes(content.getbuffer())

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint, and the temporary folder in which Lightning's spawned processes hand over theirs."""
        super().remove_checkpoint(path)
        if Path(path).name == ".temp.ckpt":
            with contextlib.suppress(OSError):
                Path(path).parent.rmdir()


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)
