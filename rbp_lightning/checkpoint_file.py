"""Reading a checkpoint without executing anything in it."""

import os
import pickle
import re
import reprlib
import zipfile
from pathlib import Path
from typing import Any

import torch
from packaging.version import Version
from torch import Tensor

from rbp_lightning.errors import UserError

_DEEPEST, _MOST, _EXPANDED = 40, 10_000_000, 2**26
"""Levels and entries that a checkpoint may have, and bytes that a tensor may have beyond those of the file."""

_LONGEST = 300
"""Characters of a value in a message."""

_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxother = _short.maxlong = 200


def shown(value: object) -> str:
    """Writes a value from a stranger's file, which may be long or hold control characters, for a message.

    Args:
        value: Any value.

    Example:
        >>> shown(chr(27) + "[2J") == repr(chr(27) + "[2J")
        True
    """
    text = " ".join(_short.repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads a checkpoint of a LightningModule onto the CPU.

    Nothing in the file is executed, and what is read is no larger than the file.

    Args:
        path: The checkpoint's file, on this machine.

    Returns:
        What Lightning saved: ``state_dict`` and the rest, in containers of bounded depth.

    Raises:
        UserError: If the file is missing, is damaged, is at a URL, holds an object that PyTorch loads only from trusted
            files, or is no checkpoint of a LightningModule.
    """
    name = f"ckpt_path={str(path)!r}"
    if not is_local(path):
        raise UserError(f"{name} is no file on this machine: download it first, then name the file.")
    if not Path(path).is_file():
        raise UserError(f"{name} is not a file: name a checkpoint, such as a run's last.ckpt.")
    try:
        size = Path(path).stat().st_size
        with zipfile.ZipFile(path) as archive:
            # PyTorch compresses nothing, so members are no larger than the file.
            if sum(member.file_size for member in archive.infolist()) > size:
                raise zipfile.BadZipFile("compressed")
            # It does not verify the checksums of the archive's members.
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(content, dict):
            raise TypeError(type(content))
        _check_sizes(content, size + _EXPANDED)
        if missing := {"state_dict", "pytorch-lightning_version"} - content.keys():
            raise KeyError(missing)
        version = Version(content["pytorch-lightning_version"])
        weights = content["state_dict"]
        named = isinstance(weights, dict) and all(isinstance(key, str) for key in [*content, *weights])
    except Exception as error:  # whatever damaged bytes make of the readers
        refused = _refused_global(error)
        if refused is None:
            raise UserError(f"{name} is corrupt, or is no checkpoint of a LightningModule: name another.") from error
        raise UserError(
            f"{name} holds {refused}, which PyTorch loads only from files that you trust. If you trust this one, allow "
            f"it before it is read, such as in your module: torch.serialization.add_safe_globals([{refused}]). Better: "
            "save plain numbers and tensors."
        ) from error
    if not named:
        raise UserError(f"{name}: its state_dict is no dict of names and tensors: name another checkpoint.")
    if version < Version("2"):
        # Lightning moves the parts of such a one after we have looked at them.
        raise UserError(f"{name} is a checkpoint of Lightning {version}: name one of Lightning 2 or later.")
    return content


def is_local(path: str | os.PathLike[str]) -> bool:
    """Returns whether a path is one of this machine's, and not what fsspec takes for a URL or a chain of them.

    Args:
        path: A path, or what a user gave for one.

    Example:
        >>> is_local("logs/last.ckpt"), is_local("https://a.b/last.ckpt"), is_local("simplecache::last.ckpt")
        (True, False, False)
    """
    text = os.fspath(path)
    return "://" not in text and "::" not in os.path.abspath(text) and not text.startswith("data:")


def _refused_global(error: Exception) -> str | None:
    """The class or function that ``weights_only=True`` refused to load, if that is what went wrong."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found and found[1]


_CONTAINERS = (Tensor, dict, list, tuple, set)


def _check_sizes(content: Any, limit: int) -> None:
    """Refuses containers that hold themselves or each other a great many times, and tensors that are mostly views."""
    level, entries = [content], 0
    for _ in range(_DEEPEST):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Tensor):
                if one.numel() * one.element_size() > limit:
                    raise ValueError("a tensor that is larger than the file")
                continue
            entries += len(one) + 30  # looking into a container takes longer than passing a number by
            if entries > _MOST:
                raise ValueError("too many entries")
            parts = [*one.keys(), *one.values()] if isinstance(one, dict) else one
            inner += [part for part in parts if isinstance(part, _CONTAINERS)]
        if not inner:
            return
        level = inner
    raise ValueError("too many levels")
