"""``--estimator.help`` and the like: lists the classes that an argument accepts."""

import inspect
import shutil
import sys
import textwrap
from collections.abc import Sequence

from jsonargparse import ArgumentParser

from rbp_lightning.cli.classes import argument_type, known_classes


def print_class_list(arguments: Sequence[str], parser: ArgumentParser) -> None:
    """Lists the classes of an argument and exits, if ``--ARGUMENT.help`` is given without a class.

    Args:
        arguments: The subcommand's arguments.
        parser: The subcommand's parser.
    """
    for argument, following in zip(arguments, [*arguments[1:], "--"], strict=True):
        key = argument.removeprefix("--").removesuffix(".help")
        if argument != f"--{key}.help" or not following.startswith("-"):
            continue
        classes = known_classes(argument_type(parser, key))
        if classes:
            print("\n".join(_lines(classes)))
            print(f"\nFor the options of one of them: {argument} NAME")
            sys.exit(0)


def _lines(classes: dict[str, type]) -> list[str]:
    margin = max(len(name) for name in classes) + 2
    wrapper = textwrap.TextWrapper(max(shutil.get_terminal_size().columns, 2 * margin), subsequent_indent=" " * margin)
    lines: list[str] = []
    for name, known in classes.items():
        lines += wrapper.wrap(name.ljust(margin) + (inspect.getdoc(known) or "").partition("\n")[0])
    return lines
