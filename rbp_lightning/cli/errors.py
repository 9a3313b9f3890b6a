"""Mistakes in the input in one line each; the user's own errors with their traceback."""

import os
import sys
import traceback
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager

from lightning.fabric.utilities.exceptions import MisconfigurationException

from rbp_lightning.errors import ConvergenceError, UserError

# An error that was raised in these alone says what is wrong with their input; line numbers in them help nobody.
_FRAMEWORK = {"rbp_lightning", "lightning", "pytorch_lightning", "torch", "jsonargparse", "yaml", "fsspec"}
_FRAMEWORK |= sys.stdlib_module_names


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Ends the program with one line for a mistake in the input; other exceptions pass.

    The exit status is 2 for a wrong option and 1 for anything else.

    Args:
        debug: Whether every exception passes. The environment variable ``RBP_DEBUG=1`` asks for the same.
    """
    try:
        yield
    except Exception as error:
        mistake = find_mistake(error)
        if mistake is None or debug or os.environ.get("RBP_DEBUG", "0") not in ("", "0"):
            raise
        print("error:", " ".join(str(mistake).split()), file=sys.stderr)
        sys.exit(2 if isinstance(mistake, ArgumentError) else 1)


def find_mistake(error: BaseException) -> BaseException | None:
    """Finds the mistake in the input among an exception and those that led to it.

    Args:
        error: An exception, which jsonargparse or Lightning may have wrapped.

    Returns:
        The mistake, or ``None`` where the user's code or a bug raised the exception.
    """
    for cause in _chain(error):
        if isinstance(cause, UserError | ConvergenceError):
            return cause
        if _is_users(cause):
            return None
    known = isinstance(error, ArgumentError | MisconfigurationException)
    return error if known else None


def users_own(error: BaseException) -> BaseException | None:
    """Finds the exception of the user's code among an exception and those that led to it, if one is there.

    Args:
        error: An exception, which jsonargparse may have wrapped.
    """
    return next((cause for cause in _chain(error) if _is_users(cause)), None)


def root_cause(error: BaseException) -> BaseException:
    """Returns the exception that led to another one, or the exception itself.

    Args:
        error: An exception.
    """
    return list(_chain(error))[-1]


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:  # two exceptions can be each other's cause
        seen.add(id(cause))
        yield cause
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)


def _is_users(error: BaseException) -> bool:
    # A module that cannot be compiled has no frame yet.
    modules = [frame.f_globals.get("__name__", "") for frame, _ in traceback.walk_tb(error.__traceback__)]
    return isinstance(error, SyntaxError) or any(name.partition(".")[0] not in _FRAMEWORK for name in modules)
