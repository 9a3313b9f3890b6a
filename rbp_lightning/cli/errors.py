"""The command line's errors in one line each."""

import inspect
import re
import sys
from argparse import ArgumentError
from collections.abc import Iterator
from contextlib import contextmanager
from pydoc import locate

from jsonargparse import Namespace
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningDataModule, LightningModule

from models import Hyperparameter, PropagationCell
from rbp_lightning.errors import UserError
from rbp_lightning.estimators import GradientEstimator
from rbp_lightning.solvers import FixedPointSolver

_CHOICES = {
    "estimator": GradientEstimator,
    "solver": FixedPointSolver,
    "model": LightningModule,
    "data": LightningDataModule,
    "cell": PropagationCell,
    "hyperparameters": Hyperparameter,
}

STRICT = {"exit_on_error": False, "allow_abbrev": False}
"""Options of parsers: an abbreviation would turn a misspelt option into another one."""

# What jsonargparse says of its own types and of the alternatives that it tried.
_NOISE = re.compile(
    r"- Does not|Does not validate|Subtypes:|Errors:|- Expected a <class 'NoneType'>|Given value|- Expected a path but"
)


@contextmanager
def one_line_errors() -> Iterator[None]:
    """Ends the program with one line for a mistake of the user's; other exceptions pass.

    The exit status is 2 for a wrong option and 1 for anything else.
    """
    try:
        yield
    except ArgumentError as error:
        print(f"error: {explain(str(error))}", file=sys.stderr)
        sys.exit(2)
    except Exception as error:
        mistake = user_error(error)
        # An OSError is a file or folder that cannot be read or written.
        if mistake is None and not isinstance(error, OSError):
            raise
        sys.exit(f"error: {mistake or error}")


@contextmanager
def refused_arguments(config: Namespace) -> Iterator[None]:
    """Takes what constructors refuse for a mistake of the user's.

    Args:
        config: The subcommand's configuration.

    Raises:
        UserError: In place of a ``ValueError`` or an ``OSError``, and where an option would be ignored.
    """
    if config.get("lr_scheduler") and not config.get("optimizer"):
        raise UserError("--lr_scheduler is ignored without --optimizer: give both.")
    try:
        yield
    except (ValueError, OSError) as error:
        raise (user_error(error) or UserError(str(error))) from error


def user_error(error: BaseException) -> BaseException | None:
    """Finds the user's mistake among an exception and those that led to it.

    Args:
        error: An exception, which jsonargparse may have wrapped.

    Returns:
        The mistake, or ``None`` where it is none of the user's.
    """
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, UserError | MisconfigurationException):
        cause = cause.__cause__ or cause.__context__
    return cause


def explain(message: str) -> str:
    r"""Tells a parser's error in one line and adds the names that exist.

    Args:
        message: What jsonargparse says.

    Returns:
        The error, with the known classes or the class's options where it was one of these that was wrong.

    Example:
        >>> explain("Problem with given class_path 'rbp_lightning.BPTT':\n  Option 'steps' is not accepted")
        "Problem with given class_path 'rbp_lightning.BPTT': Option 'steps' is not accepted. Options of BPTT: solver."
    """
    lines = [line.strip() for line in message.splitlines()]
    text = " ".join(line.removeprefix("- ") for line in lines if line and not _NOISE.match(line))
    keys = re.findall(r'Parser key "(\w+)"', text)
    owners = re.findall(r"class_path '([\w.]+)'", text)
    owner = locate(owners[-1]) if owners else None
    if "is not accepted" in text and isinstance(owner, type):
        options = ", ".join(inspect.signature(owner).parameters)
        return f"{text}. Options of {owner.__name__}: {options}."
    if re.search(r"Expected a dot import path|not a subclass|No module named|has no attribute", text) and keys:
        known = sorted(_concrete_subclasses(_CHOICES[keys[-1]])) if keys[-1] in _CHOICES else []
        return f"{text}. Known: {', '.join(known)}." if known else text
    if re.search(r"required: \w+\.model\b", text):
        return f"{text}. A config names one, such as a checkout's: --config configs/hopfield.yaml."
    if text.startswith("unrecognized arguments"):
        return f"{text}. The options are listed by --help, and those of an estimator by --estimator.help NAME."
    return text


def _concrete_subclasses(base: type) -> set[str]:
    names: set[str] = set()
    subclasses: list[type] = type.__subclasses__(base)
    for subclass in subclasses:
        names |= _concrete_subclasses(subclass)
        if not inspect.isabstract(subclass) and not subclass.__module__.startswith("lightning."):
            names.add(subclass.__name__)
    return names
