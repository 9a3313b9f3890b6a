"""Mistakes in the input, and signals, in one line each; the user's own errors with their traceback."""

import os
import re
import sys
import threading
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only
from torch.multiprocessing.spawn import ProcessRaisedException

from rbp_lightning.cli.interruption import Interrupted
from rbp_lightning.cli.mistakes import find_mistake, is_of_the_disk
from rbp_lightning.errors import ConvergenceError, UserError

# Their messages are made for those who gave the value.
_EXPLAINED = (ArgumentError, ConvergenceError, MisconfigurationException, OSError, TypeError, ValueError)


@contextmanager
def one_line_errors(debug: bool = False) -> Iterator[None]:
    """Ends the program with one line for a mistake in the input or a signal; other exceptions pass.

    The exit status is 2 for a wrong option, 128 and its number for a signal, and 1 for anything else.

    Args:
        debug: Whether every exception passes. The environment variable ``RBP_DEBUG=1`` asks for the same.
    """
    shown = threading.excepthook
    threading.excepthook = lambda raised: None if is_of_the_disk(raised.exc_value) else shown(raised)
    try:
        yield
    except Interrupted as stop:
        if _rank() == 0:
            _print_line(str(stop))
        raise
    except Exception as error:
        mistake = _lost_process(error) or _of_spawned(error) or find_mistake(error)
        if debug or os.environ.get("RBP_DEBUG", "0") not in ("", "0"):
            raise
        if mistake is None and isinstance(error, ProcessRaisedException):
            # It holds the traceback; that of the wait for the process tells nothing.
            print(str(error).strip(), file=sys.stderr, flush=True)
            sys.exit(1)
        if mistake is None:
            raise
        _print_line(_told(mistake))
        sys.exit(2 if isinstance(mistake, ArgumentError) else 1)
    finally:
        threading.excepthook = shown


def _print_line(text: str) -> None:
    print("error:", " ".join(text.split()), file=sys.stderr, flush=True)


def _told(mistake: BaseException) -> str:
    if is_of_the_disk(mistake):
        return (
            f"{mistake}: make room, or give the run another folder (trainer.logger.save_dir or "
            "trainer.default_root_dir). Checkpoints that were written are as they were."
        )
    if isinstance(mistake, _EXPLAINED):
        return str(mistake)
    return f"{type(mistake).__name__}: {mistake} (--debug shows where it was raised)"


def _lost_process(error: BaseException) -> UserError | None:
    """What to say where a process of several waited for one that has ended."""
    if not isinstance(error, torch.distributed.DistError) and "gloo/transport" not in str(error):
        return None
    return UserError(f"process {_rank()} ends because another one of this run has: see what that one says.")


def _of_spawned(error: BaseException) -> UserError | None:
    """The mistake that ended a process which Lightning has spawned or forked; it hands over no more than text."""
    if not isinstance(error, ProcessRaisedException):
        return None
    found = re.search(
        rf"^{UserError.__module__}\.(?:User|Convergence)Error: (.*)\Z", str(error), re.DOTALL | re.MULTILINE
    )
    return UserError(found[1]) if found else None


def _rank() -> int:
    rank: int = cast(Any, rank_zero_only).rank
    return rank
