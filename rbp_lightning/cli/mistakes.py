"""Distinguishes mistakes in the input from errors in the user's code and from bugs."""

import errno
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from lightning.fabric.utilities.exceptions import MisconfigurationException

from rbp_lightning.errors import ConvergenceError, UserError

# An error raised in these alone says what is wrong with their input; their tracebacks do not help.
_OTHERS = {"lightning", "pytorch_lightning", "lightning_utilities", "torch", "torchmetrics", "jsonargparse", "yaml"}
_OTHERS |= {"fsspec", "tensorboard", "rich", "numpy", "matplotlib", "PIL"}
_FRAMEWORK = {"rbp_lightning", *_OTHERS, *sys.stdlib_module_names}

# The tasks of a checkout, beside this package; a user's folders of the same names are elsewhere.
_TASKS = [Path(__file__).parents[2] / name for name in ("models", "datamodules")]

_DISK_ERRORS = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""Errors of a disk that is full or read-only."""


def find_mistake(error: BaseException) -> BaseException | None:
    """Finds the mistake in the input in an exception's chain.

    Args:
        error: An exception, which jsonargparse or Lightning may have wrapped.

    Returns:
        The mistake; ``None`` if the user's code or a bug raised the exception.
    """
    for cause in chain(error):
        if isinstance(cause, UserError | ConvergenceError) or is_disk_error(cause):
            return cause
        if _is_users(cause):
            return cause if _options_do_not_allow(cause) else None
    explained = isinstance(error, ArgumentError | MisconfigurationException | OSError)
    return error if explained or _is_of_framework(error) else None


def find_user_error(error: BaseException) -> BaseException | None:
    """Finds the exception that the user's code raised in an exception's chain, if there is one.

    Args:
        error: An exception, which jsonargparse may have wrapped.
    """
    return next((cause for cause in chain(error) if _is_users(cause)), None)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception and its causes, each once.

    Args:
        error: The exception.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:  # two exceptions can be each other's cause
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def is_disk_error(error: BaseException | None) -> bool:
    """Whether an exception says that a disk is full or read-only.

    Args:
        error: The exception.
    """
    return isinstance(error, OSError) and error.errno in _DISK_ERRORS


def _packages(error: BaseException) -> list[str]:
    """The packages of an exception's frames, from where it was caught to where it was raised."""
    return [_package(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_users(error: BaseException) -> bool:
    # A module that does not compile has no frame.
    return isinstance(error, SyntaxError) or any(name not in _FRAMEWORK for name in _packages(error))


def _options_do_not_allow(error: BaseException) -> bool:
    """Whether a hook asked Lightning for something that the Trainer's options do not allow, such as the run's length.

    Either Lightning raised its own class of exception, or a task of this checkout called it.
    """
    if not _is_of_framework(error) or _packages(error)[-1] != "lightning":
        return False
    frames = traceback.walk_tb(error.__traceback__)
    files = [Path(frame.f_code.co_filename) for frame, _ in frames if _package(frame) not in _FRAMEWORK]
    tasks = all(any(file.is_relative_to(folder) for folder in _TASKS) for file in files)
    return tasks or isinstance(error, MisconfigurationException)


def _is_of_framework(error: BaseException) -> bool:
    """Whether a framework such as Lightning or PyTorch raised it, which means a bad value and not a bug of ours."""
    own = [name for name in _packages(error) if name not in sys.stdlib_module_names]
    return bool(own) and own[-1] in _OTHERS and not isinstance(error, Warning)
