"""Errors a user can put right, and the warning for what did not converge."""

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
    """A fixed point or its gradient is wrong, and the policy is to stop.

    The command line prints it without a traceback and exits with status 1.
    """


class ConvergenceWarning(UserWarning):
    """A fixed point or an adjoint did not reach its tolerance, so a result or a gradient may be wrong."""


MOST = 10**9
"""The largest count: what takes more steps, or makes more of anything, is a slip of the hand."""

LARGEST_SEED = 2**32 - 1
"""The largest seed that all generators take."""

MOST_ENTRIES = 10**9
"""Most entries of one array that an argument asks for: 4 GB in float32."""

_LEAST_NUMBER, _LARGEST_NUMBER = 1e-30, 1e30
"""Beyond these a number, its square or its inverse is 0 or infinite in float32."""


def check_count(owner: object, name: str, value: int, minimum: int, maximum: int = MOST) -> int:
    """Returns an integer argument, or says which argument of which class is wrong.

    Args:
        owner: The object, or the function, whose argument it is.
        name: The argument's name.
        value: The value that was given.
        minimum: The smallest value allowed.
        maximum: The largest value allowed.

    Raises:
        UserError: If ``value`` is not an integer, is below ``minimum`` or above ``maximum``.
    """
    try:
        count = operator.index(value)
    except (TypeError, RuntimeError):  # the latter of a tensor without values
        count = minimum - 1
    if count < minimum or isinstance(value, bool):
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be a whole number of at least {minimum}.")
    if count > maximum:
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be a whole number of at most {maximum}.")
    return count


def check_seed(owner: object, name: str, value: int) -> int:
    """Returns a seed, or says which argument of which class is wrong.

    Args:
        owner: The object, or the function, whose argument it is.
        name: The argument's name.
        value: The value that was given.

    Raises:
        UserError: If ``value`` is not an integer from 0 to ``LARGEST_SEED``.
    """
    return check_count(owner, name, value, 0, LARGEST_SEED)


def check_entries(owner: object, entries: int, **arguments: object) -> None:
    """Refuses arguments that make an array which fits into no memory.

    Args:
        owner: The object, or the function, whose arguments they are.
        entries: How many entries the array has.
        arguments: The arguments that decide it, by name.

    Raises:
        UserError: If they are more than ``MOST_ENTRIES``.

    Example:
        >>> check_entries(torch.eye, 10**12, n=10**6)
        Traceback (most recent call last):
        rbp_lightning.errors.UserError: eye: n=1000000 makes 1e+12 entries, more than the limit of 1e+09: lower it.
    """
    if entries > MOST_ENTRIES:
        given = ", ".join(f"{name}={_shown(value)}" for name, value in arguments.items())
        makes, what = ("makes", "it") if len(arguments) == 1 else ("make", "them")
        raise UserError(
            f"{_name(owner)}: {given} {makes} {float(entries):.3g} entries, more than the limit of "
            f"{float(MOST_ENTRIES):.3g}: lower {what}."
        )


def check_number(
    owner: object, name: str, value: float, low: float, high: float = _LARGEST_NUMBER, low_allowed: bool = True
) -> float:
    """Returns a finite real argument, or says which argument of which class is wrong.

    Args:
        owner: The object, or the function, whose argument it is.
        name: The argument's name.
        value: The value that was given.
        low: The lower end of the range.
        high: The upper end of the range, which is allowed.
        low_allowed: Whether ``low`` itself is allowed. If it is 0 and is not, what is 0 in float32 is not either.

    Raises:
        UserError: If ``value`` is not a finite number within the range.
    """
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN fails these comparisons.
    if not valid or not low <= value <= high or (value == low and not low_allowed):
        bracket = "[" if low_allowed else "("
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be a number in {bracket}{low:g}, {high:g}].")
    if low == 0 and not low_allowed and value < _LEAST_NUMBER:
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be a number of at least {_LEAST_NUMBER:g}.")
    return float(value)


def check_choice(owner: object, name: str, value: str, choices: Iterable[str]) -> str:
    """Returns an argument that is one of some names, or says which argument of which class is wrong.

    Args:
        owner: The object, or the function, whose argument it is.
        name: The argument's name.
        value: The value that was given.
        choices: The names it may have.

    Raises:
        UserError: If ``value`` is none of them.
    """
    allowed = list(choices)
    if not isinstance(value, str) or value not in allowed:
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} must be one of {', '.join(allowed)}.")
    return value


def check_instance(owner: object, name: str, value: Kind, kind: type[Any], remedy: str) -> Kind:
    """Returns an argument of a class, or says which argument of which class is wrong.

    Args:
        owner: The object, or the function, whose argument it is.
        name: The argument's name.
        value: The value that was given.
        kind: The class.
        remedy: What to pass.

    Raises:
        UserError: If ``value`` is no instance of it.
    """
    if not isinstance(value, kind):
        raise UserError(f"{_name(owner)}: {name}={_shown(value)} is no {kind.__name__}: pass {remedy}.")
    return value


def _shown(value: object) -> str:
    # Python refuses to print integers of thousands of digits, and a tensor takes several lines.
    if isinstance(value, int) and value.bit_length() > 1000:
        return f"an integer of {value.bit_length()} bits"
    return " ".join(repr(value).split())[:100]


def _name(owner: object) -> str:
    return getattr(owner, "__name__", type(owner).__name__)
