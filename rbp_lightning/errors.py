"""Errors and warnings for users, and checks of arguments."""

import operator
from collections.abc import Iterable
from typing import Any, TypeVar

Kind = TypeVar("Kind")


class UserError(ValueError):
    """A mistake in the input: an argument, a file or a checkpoint.

    The message names what is wrong, its value and the remedy. The command line prints it without a traceback and
    exits with status 1.
    """


class ConvergenceError(RuntimeError):
    """A fixed point or its gradient is wrong, and the failure policy is ``"raise"``.

    The command line prints it without a traceback and exits with status 1.
    """


class ConvergenceWarning(UserWarning):
    """A fixed point or an adjoint did not reach its tolerance, so a result or a gradient may be wrong."""


MAX_COUNT = 10**9
"""Default upper limit of counts; a larger one is taken for a typing error."""

MAX_SEED = 2**32 - 1
"""The largest seed that all random generators accept."""

MAX_ENTRIES = 10**9
"""Maximum number of entries of an array whose size an argument decides: 4 GB in float32."""

_MIN_NUMBER, _MAX_NUMBER = 1e-30, 1e30
"""Outside these limits a number, its square or its inverse is 0 or infinite in float32."""


def check_count(owner: object, name: str, value: int, minimum: int, maximum: int = MAX_COUNT) -> int:
    """Checks an integer argument and returns it as an ``int``.

    Args:
        owner: The object or function that takes the argument, named in the message.
        name: The argument's name.
        value: The argument's value.
        minimum: The smallest value allowed.
        maximum: The largest value allowed.

    Raises:
        UserError: If ``value`` is not an integer, is below ``minimum`` or above ``maximum``.
    """
    try:
        count = operator.index(value)
    except (TypeError, RuntimeError):  # RuntimeError for a tensor on the meta device
        count = minimum - 1
    if count < minimum or isinstance(value, bool):
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be a whole number of at least {minimum}.")
    if count > maximum:
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be a whole number of at most {maximum}.")
    return count


def check_seed(owner: object, name: str, value: int) -> int:
    """Checks a random seed and returns it.

    Args:
        owner: The object or function that takes the argument, named in the message.
        name: The argument's name.
        value: The argument's value.

    Raises:
        UserError: If ``value`` is not an integer from 0 to ``MAX_SEED``.
    """
    return check_count(owner, name, value, 0, MAX_SEED)


def check_entries(owner: object, entries: int, **arguments: object) -> None:
    """Checks that the array whose size some arguments decide is not too large for memory.

    Args:
        owner: The object or function that takes the arguments, named in the message.
        entries: The number of entries of the array.
        arguments: The arguments that decide it, by name.

    Raises:
        UserError: If ``entries`` is larger than ``MAX_ENTRIES``.

    Example:
        >>> check_entries(torch.eye, 10**12, n=10**6)
        Traceback (most recent call last):
        rbp_lightning.errors.UserError: eye: n=1000000 makes 1e+12 entries, more than the limit of 1e+09: lower it.
    """
    if entries > MAX_ENTRIES:
        given = ", ".join(f"{name}={_shown(value)}" for name, value in arguments.items())
        makes, what = ("makes", "it") if len(arguments) == 1 else ("make", "them")
        raise UserError(
            f"{_name(owner)}: {given} {makes} {float(entries):.3g} entries, more than the limit of "
            f"{float(MAX_ENTRIES):.3g}: lower {what}."
        )


def check_number(
    owner: object, name: str, value: float, low: float, high: float = _MAX_NUMBER, low_allowed: bool = True
) -> float:
    """Checks a finite real argument and returns it as a ``float``.

    Args:
        owner: The object or function that takes the argument, named in the message.
        name: The argument's name.
        value: The argument's value.
        low: The lower end of the range.
        high: The upper end of the range, which is allowed.
        low_allowed: Whether ``low`` itself is allowed. If 0 is not, numbers that underflow in float32 are not either.

    Raises:
        UserError: If ``value`` is not a finite number within the range.
    """
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    # The comparison is False for NaN.
    if not valid or not low <= value <= high or (value == low and not low_allowed):
        bracket = "[" if low_allowed else "("
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be a number in {bracket}{low:g}, {high:g}].")
    if low == 0 and not low_allowed and value < _MIN_NUMBER:
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be a number of at least {_MIN_NUMBER:g}.")
    return float(value)


def check_choice(owner: object, name: str, value: str, choices: Iterable[str]) -> str:
    """Checks that an argument is one of the allowed names and returns it.

    Args:
        owner: The object or function that takes the argument, named in the message.
        name: The argument's name.
        value: The argument's value.
        choices: The allowed names.

    Raises:
        UserError: If ``value`` is not one of them.
    """
    allowed = list(choices)
    if not isinstance(value, str) or value not in allowed:
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be one of {', '.join(allowed)}.")
    return value


def check_instance(owner: object, name: str, value: Kind, kind: type[Any], remedy: str) -> Kind:
    """Checks that an argument is an instance of a class and returns it.

    Args:
        owner: The object or function that takes the argument, named in the message.
        name: The argument's name.
        value: The argument's value.
        kind: The class.
        remedy: What to pass instead, for the message.

    Raises:
        UserError: If ``value`` is not an instance of ``kind``.
    """
    if not isinstance(value, kind):
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} is not of type {kind.__name__}: pass {remedy}.")
    return value


def _shown(value: object) -> str:
    # Python refuses to print integers of thousands of digits, and the repr of a tensor has several lines.
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"
    return " ".join(repr(value).split())[:100]


def _name(owner: object) -> str:
    return getattr(owner, "__name__", type(owner).__name__)
