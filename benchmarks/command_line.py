"""The command line that benchmarks and experiments share."""

import sys
from typing import Any

from jsonargparse import auto_cli

from rbp_lightning.cli.errors import one_line_errors
from rbp_lightning.cli.interruption import signals_end_the_run


def run(functions: dict[str, Any], program: str) -> None:
    """Runs the function that the command line names.

    Args:
        functions: The functions, by name; their type hints and docstrings are the options and the help.
        program: The program's name in the help.
    """
    arguments = sys.argv[1:]
    sys.argv = sys.argv[:1]  # a command line of Lightning within a function would read them as its own
    with one_line_errors(), signals_end_the_run():
        auto_cli(functions, args=arguments, prog=program)
