"""Reading a checkpoint without executing anything in it."""

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from rbp_lightning.errors import UserError


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint of a LightningModule onto the CPU.

    Args:
        path: The checkpoint's file.

    Returns:
        What Lightning saved: ``state_dict`` and the rest.

    Raises:
        UserError: If the file is missing, is damaged, holds an object that PyTorch loads only from trusted files, or
            is no checkpoint of a LightningModule.
    """
    name = f"ckpt_path={str(path)!r}"
    if not Path(path).is_file():
        raise UserError(f"{name} is not a file: name a checkpoint, such as a run's last.ckpt.")
    try:
        # PyTorch does not verify the checksums of the archive's members.
        with zipfile.ZipFile(path) as archive:
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if missing := {"state_dict", "pytorch-lightning_version"} - content.keys():
            raise KeyError(missing)
    except Exception as error:  # whatever damaged bytes make of the readers
        refused = _refused_global(error)
        if refused is None:
            raise UserError(f"{name} is corrupt, or is no checkpoint of a LightningModule: name another.") from error
        raise UserError(
            f"{name} holds {refused}, which PyTorch loads only from files that you trust. If you trust this one, allow "
            f"it before it is read, such as in your module: torch.serialization.add_safe_globals([{refused}]). Better: "
            "save plain numbers and tensors."
        ) from error
    return content


def _refused_global(error: Exception) -> str | None:
    """The class or function that ``weights_only=True`` refused to load, if that is what went wrong."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found and found[1]
