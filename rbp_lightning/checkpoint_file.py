"""Loads a checkpoint without executing code from it."""

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

_MAX_DEPTH, _MAX_ENTRIES, _MAX_EXPANSION = 40, 10_000_000, 2**26
"""Limits of a checkpoint: nesting depth, number of entries, and bytes by which a tensor may exceed the file."""

_MAX_CHARACTERS = 300
"""Maximum length of a value in a message."""

_short = reprlib.Repr()
_short.maxlevel = 3
_short.maxstring = _short.maxother = _short.maxlong = 200


def shown(value: object) -> str:
    """Formats a value from an untrusted file for a message: short, in one line, without control characters.

    Args:
        value: Any value.

    Example:
        >>> shown(chr(27) + "[2J") == repr(chr(27) + "[2J")
        True
    """
    text = " ".join(_short.repr(value).split())
    return text if len(text) <= _MAX_CHARACTERS else f"{text[:_MAX_CHARACTERS]}..."


def refuse_unsafe_loading(weights_only: bool | None) -> None:
    """Refuses Lightning's ``weights_only=False``.

    Args:
        weights_only: The argument; ``None`` if it is not given.

    Raises:
        UserError: If it is ``False``.
    """
    if weights_only is False:
        raise UserError("weights_only=False would run code from the checkpoint, and is never needed: leave it out.")


def load_checkpoint(path: str | Path) -> dict[str, Any]:
    """Loads the checkpoint of a LightningModule onto the CPU.

    No code from the file is executed, and its depth, number of entries and size are limited.

    Args:
        path: Path of the checkpoint on this machine.

    Returns:
        The content that Lightning saved, such as ``state_dict``.

    Raises:
        UserError: If the file is missing, damaged, at a URL, holds an object that PyTorch loads only from trusted
            files, or is not the checkpoint of a LightningModule.
    """
    name = f"ckpt_path={str(path)!r}"
    if not is_local(path):
        raise UserError(f"{name} is not a file on this machine: download it first, then pass the file.")
    if not Path(path).is_file():
        raise UserError(f"{name} is not a file: pass a checkpoint, such as last.ckpt of a run.")
    try:
        size = Path(path).stat().st_size
        with zipfile.ZipFile(path) as archive:
            # PyTorch does not compress, so the members cannot be larger than the file.
            if sum(member.file_size for member in archive.infolist()) > size:
                raise zipfile.BadZipFile("compressed")
            # torch.load does not verify the checksums of the members.
            if damaged := archive.testzip():
                raise zipfile.BadZipFile(damaged)
        content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        if not isinstance(content, dict):
            raise TypeError(type(content))
        _check_sizes(content, size + _MAX_EXPANSION)
        if missing := {"state_dict", "pytorch-lightning_version"} - content.keys():
            raise KeyError(missing)
        version = Version(content["pytorch-lightning_version"])
        weights = content["state_dict"]
        named = isinstance(weights, dict) and all(isinstance(key, str) for key in [*content, *weights])
    except Exception as error:  # damaged bytes can cause any error
        refused = _refused_global(error)
        if refused is None:
            raise UserError(
                f"{name} is corrupt, or is not the checkpoint of a LightningModule: pass another file."
            ) from error
        raise UserError(
            f"{name} holds {refused}, which PyTorch loads only from files that you trust. If you trust this one, call "
            f"torch.serialization.add_safe_globals([{refused}]) before it is loaded, such as in your module. Better: "
            "save plain numbers and tensors."
        ) from error
    if not named:
        raise UserError(f"{name}: its state_dict is not a dict of names and tensors: pass another checkpoint.")
    if version < Version("2"):
        # Lightning migrates an old checkpoint after these checks.
        raise UserError(f"{name} is a checkpoint of Lightning {version}: pass one of Lightning 2 or later.")
    return content


def is_local(path: str | os.PathLike[str]) -> bool:
    """Whether a path is local, and not what fsspec takes for a URL or a chain of URLs.

    Args:
        path: The path.

    Example:
        >>> is_local("logs/last.ckpt"), is_local("https://a.b/last.ckpt"), is_local("simplecache::last.ckpt")
        (True, False, False)
    """
    text = os.fspath(path)
    return "://" not in text and "::" not in os.path.abspath(text) and not text.startswith("data:")


def _refused_global(error: Exception) -> str | None:
    """The class or function that ``weights_only=True`` refused to load, if that caused the error."""
    if not isinstance(error, pickle.UnpicklingError):
        return None
    found = re.search(r"GLOBAL ([\w.]+)", str(error))
    return found and found[1]


_CONTAINERS = (Tensor, dict, list, tuple, set)


def _check_sizes(content: Any, limit: int) -> None:
    """Refuses containers that contain themselves or expand exponentially, and tensors expanded from little data."""
    level, entries = [content], 0
    for _ in range(_MAX_DEPTH):
        inner: list[Any] = []
        for one in level:
            if isinstance(one, Tensor):
                if one.numel() * one.element_size() > limit:
                    raise ValueError("a tensor that is larger than the file")
                continue
            entries += len(one) + 30  # visiting a container takes longer than skipping a number
            if entries > _MAX_ENTRIES:
                raise ValueError("too many entries")
            parts = [*one.keys(), *one.values()] if isinstance(one, dict) else one
            inner += [part for part in parts if isinstance(part, _CONTAINERS)]
        if not inner:
            return
        level = inner
    raise ValueError("too many levels")
