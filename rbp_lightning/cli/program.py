"""The command line as a program."""

import os
import sys

from rbp_lightning.cli.errors import one_line_errors
from rbp_lightning.cli.interruption import signals_end_the_run
from rbp_lightning.cli.main import main
from rbp_lightning.cli.processes import ending_without_group
from rbp_lightning.cli.sweep import sweep
from rbp_lightning.overview import answer


def console(args: list[str] | None = None) -> None:
    """Runs the command line for a shell: mistakes in the input and signals are one line and an exit status.

    Args:
        args: The arguments; ``None`` for those of the process.
    """
    # In a console script the first entry is the script's folder, not the current one with the user's modules.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    words = sys.argv[1:] if args is None else args
    answer(words)
    with ending_without_group(), one_line_errors("--debug" in words), signals_end_the_run():
        if words[:1] == ["sweep"]:
            sweep(words[1:])
        else:
            main(args)
