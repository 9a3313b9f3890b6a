"""Atomic writing of files and checkpoints."""

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
    """Writes a file atomically: under a temporary name first, which then replaces the previous file.

    What a killed process leaves behind is overwritten the next time the same file is written.

    Args:
        path: The file; its folder is created if missing.

    Yields:
        The temporary path to write to.

    Raises:
        UserError: If it cannot be written, for example because the disk is full.
    """
    # In the same folder, so that it can be renamed, under a name that no search for checkpoints matches.
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield unfinished
        _sync(unfinished)
        os.replace(unfinished, path)
        with contextlib.suppress(OSError):  # not every file system supports it
            _sync(path.parent)
    except OSError as error:
        raise UserError(
            f"cannot write {path} ({error.strerror or error}): free some space, or use another folder. The previous "
            "file, if any, is unchanged."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            unfinished.unlink(missing_ok=True)  # frees the space on a full disk


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes checkpoints atomically.

    Lightning's own writes into the system's temporary folder and moves the file from there. On another file system that
    is a copy: a process killed meanwhile leaves neither the new checkpoint nor the previous one.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Writes a checkpoint.

        Args:
            checkpoint: The checkpoint's content.
            path: The file; Lightning writes those that are not local.
            storage_options: Not supported, as in Lightning.

        Raises:
            UserError: If the file cannot be written.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        content = io.BytesIO()  # torch.save hides why a file cannot be written
        torch.save(checkpoint, content)
        with written_whole(Path(path)) as unfinished:
            unfinished.write_bytes(content.getbuffer())

    def remove_checkpoint(self, path: Any) -> None:
        """Removes a checkpoint, and the temporary folder through which Lightning's spawned processes pass one."""
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
