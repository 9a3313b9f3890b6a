"""Error messages of the command line: one line for a mistake in the input or a signal, a traceback otherwise."""

import os
import re
import sys
import threading
import traceback
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from torch.multiprocessing.spawn import ProcessRaisedException

from rbp_lightning.cli.interruption import Interrupted
from rbp_lightning.cli.mistakes import find_mistake, is_disk_error
from rbp_lightning.cli.summary import relative
from rbp_lightning.errors import ConvergenceError, UserError
from rbp_lightning.reporting import is_user_frame

# Exceptions whose messages explain themselves to a user.
_SELF_EXPLANATORY = (ArgumentError, ConvergenceError, MisconfigurationException, OSError, TypeError, ValueError)


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Exits with a one-line message for a mistake in the input or a signal; other exceptions propagate.

    The exit status is 2 for a wrong option, 128 plus its number for a signal, and 1 for anything else.

    Args:
        debug: Whether to let every exception propagate, as the environment variable ``RBP_DEBUG=1`` does.
    """
    excepthook = threading.excepthook
    threading.excepthook = lambda raised: None if is_disk_error(raised.exc_value) else excepthook(raised)
    try:
        yield
    except Interrupted as stop:
        if _rank() == 0:
            _print_line(str(stop))
        raise
    except Exception as error:
        mistake = _lost_process(error) or _mistake_of_spawned(error) or find_mistake(error)
        if debug or os.environ.get("RBP_DEBUG", "0") not in ("", "0"):
            raise
        if mistake is None and isinstance(error, ProcessRaisedException):
            # Its text is the child's traceback; this process's own says nothing.
            print(str(error).strip(), file=sys.stderr, flush=True)
            sys.exit(1)
        if mistake is None:
            raise
        _print_line(_message(mistake))
        sys.exit(2 if isinstance(mistake, ArgumentError) else 1)
    finally:
        threading.excepthook = excepthook


def _print_line(text: str) -> None:
    print("error:", " ".join(text.split()), file=sys.stderr, flush=True)


def _message(mistake: BaseException) -> str:
    if is_disk_error(mistake):
        return (
            f"{mistake}: free some space, or use another folder (trainer.logger.save_dir or "
            "trainer.default_root_dir). Checkpoints written before are intact."
        )
    if isinstance(mistake, _SELF_EXPLANATORY):
        return f"{mistake}{_line_of_solve(mistake)}"
    return f"{type(mistake).__name__}: {mistake} (--debug shows the traceback)"


def _line_of_solve(mistake: BaseException) -> str:
    """The line of the user's code that started the solve which found the mistake; empty if there was none."""
    frames = list(traceback.walk_tb(mistake.__traceback__))
    calls = [frame.f_globals.get("__name__", "") + "." + frame.f_code.co_name for frame, _ in frames]
    if "rbp_lightning.estimators.base.__call__" not in calls:
        return ""
    outside = frames[: calls.index("rbp_lightning.estimators.base.__call__")]
    lines = [f" ({relative(frame.f_code.co_filename)}:{line})" for frame, line in outside if is_user_frame(frame)]
    return lines[-1] if lines else ""


def _lost_process(error: BaseException) -> UserError | None:
    """The error of a process that waited for another one which has ended."""
    if not isinstance(error, torch.distributed.DistError) and "gloo/transport" not in str(error):
        return None
    return UserError(f"process {_rank()} ends because another process of this run has: see the error of that one.")


def _mistake_of_spawned(error: BaseException) -> UserError | None:
    """The mistake that ended a process which Lightning spawned or forked, of which only text arrives here."""
    if not isinstance(error, ProcessRaisedException):
        return None
    found = re.search(
        rf"^{UserError.__module__}\.(?:User|Convergence)Error: (.*)\Z", str(error), re.DOTALL | re.MULTILINE
    )
    return UserError(found[1]) if found else None


def _rank() -> int:
    rank: int = cast(Any, rank_zero_only).rank
    return rank
