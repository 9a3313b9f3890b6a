"""The end of a process of a distributed run."""

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def leave_process_group() -> None:
    """Leaves the process group, if there is one.

    Lightning leaves that to the interpreter's exit, which gloo's threads sometimes abort.
    """
    if _in_group():
        torch.distributed.destroy_process_group()
        gc.collect()  # ends the threads: reference cycles through the trainer still hold the group


@contextmanager
def ending_without_group() -> Iterator[None]:
    """Ends the process with the exception's status or traceback, if it is in a process group when an exception comes.

    The exception holds the trainer, so the group cannot be left before the interpreter's exit.
    """
    try:
        yield
    except BaseException as error:
        if not _in_group():
            raise
        status = error.code if isinstance(error, SystemExit) else 1
        if not isinstance(error, SystemExit):
            sys.excepthook(type(error), error, error.__traceback__)
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def _in_group() -> bool:
    return torch.distributed.is_available() and torch.distributed.is_initialized()
