"""Telling mistakes in the input from the user's own errors and from bugs."""

import errno
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from lightning.fabric.utilities.exceptions import MisconfigurationException

from rbp_lightning.errors import ConvergenceError, UserError

# An error that was raised in these alone says what is wrong with their input; line numbers in them help nobody.
_OTHERS = {"lightning", "pytorch_lightning", "lightning_utilities", "torch", "torchmetrics", "jsonargparse", "yaml"}
_OTHERS |= {"fsspec", "tensorboard", "rich", "numpy", "matplotlib", "PIL"}
_FRAMEWORK = {"rbp_lightning", *_OTHERS, *sys.stdlib_module_names}

# The tasks of a checkout, beside this package; a user's own folder of the same name is elsewhere.
_TASKS = [Path(__file__).parents[2] / name for name in ("models", "datamodules")]

_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS}
"""What an OSError says of a disk, whoever writes to it."""


def find_mistake(error: BaseException) -> BaseException | None:
    """Finds the mistake in the input among an exception and those that led to it.

    Args:
        error: An exception, which jsonargparse or Lightning may have wrapped.

    Returns:
        The mistake, or ``None`` where the user's code or a bug raised the exception.
    """
    for cause in chain(error):
        if isinstance(cause, UserError | ConvergenceError) or is_of_the_disk(cause):
            return cause
        if _is_users(cause):
            return cause if _is_asked_for(cause) else None
    known = isinstance(error, ArgumentError | MisconfigurationException | OSError)
    return error if known or _is_refused(error) else None


def users_own(error: BaseException) -> BaseException | None:
    """Finds the exception of the user's code among an exception and those that led to it, if one is there.

    Args:
        error: An exception, which jsonargparse may have wrapped.
    """
    return next((cause for cause in chain(error) if _is_users(cause)), None)


def chain(error: BaseException) -> Iterator[BaseException]:
    """Yields an exception and those that led to it, each once.

    Args:
        error: The exception.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:  # two exceptions can be each other's cause
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def is_of_the_disk(error: BaseException | None) -> bool:
    """Whether an exception says that a disk is full or cannot be written to.

    Args:
        error: The exception.
    """
    return isinstance(error, OSError) and error.errno in _FULL


def _packages(error: BaseException) -> list[str]:
    """The packages through which an exception went, from where it was caught to where it was raised."""
    return [_package(frame) for frame, _ in traceback.walk_tb(error.__traceback__)]


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]


def _is_users(error: BaseException) -> bool:
    # A module that cannot be compiled has no frame yet.
    return isinstance(error, SyntaxError) or any(name not in _FRAMEWORK for name in _packages(error))


def _is_asked_for(error: BaseException) -> bool:
    """Whether a hook asked Lightning for something, such as the run's length, that the Trainer's options do not allow.

    Lightning says so by a class of its own, or its caller is a task of this checkout.
    """
    if not _is_refused(error) or _packages(error)[-1] != "lightning":
        return False
    frames = traceback.walk_tb(error.__traceback__)
    files = [Path(frame.f_code.co_filename) for frame, _ in frames if _package(frame) not in _FRAMEWORK]
    tasks = all(any(file.is_relative_to(folder) for folder in _TASKS) for file in files)
    return tasks or isinstance(error, MisconfigurationException)


def _is_refused(error: BaseException) -> bool:
    """Whether Lightning, PyTorch or jsonargparse raised it: of a value that they were given, as no bug of ours is."""
    own = [name for name in _packages(error) if name not in sys.stdlib_module_names]
    return bool(own) and own[-1] in _OTHERS and not isinstance(error, Warning)
