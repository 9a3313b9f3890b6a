"""Errors a user can put right, and the warning for what did not converge."""

import operator
from collections.abc import Iterable


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


def check_count(owner: object, name: str, value: int, minimum: int) -> int:
    """Returns an integer argument, or says which argument of which class is wrong.

    Args:
        owner: The object, or the function, whose argument it is.
        name: The argument's name.
        value: The value that was given.
        minimum: The smallest value allowed.

    Raises:
        UserError: If ``value`` is not an integer or is below ``minimum``.
    """
    try:
        count = operator.index(value)
    except TypeError:
        count = minimum - 1
    if count < minimum or isinstance(value, bool):
        raise UserError(f"{_name(owner)}: {name}={value!r} must be a whole number of at least {minimum}.")
    return count


def check_number(
    owner: object, name: str, value: float, low: float, high: float = float("inf"), low_allowed: bool = True
) -> float:
    """Returns a finite real argument, or says which argument of which class is wrong.

    Args:
        owner: The object, or the function, whose argument it is.
        name: The argument's name.
        value: The value that was given.
        low: The lower end of the range.
        high: The upper end of the range, always allowed when finite.
        low_allowed: Whether ``low`` itself is allowed.

    Raises:
        UserError: If ``value`` is not a finite number within the range.
    """
    valid = isinstance(value, int | float) and not isinstance(value, bool)
    # Infinity itself and NaN fail these comparisons.
    if not valid or not low <= value <= high or abs(value) == float("inf") or (value == low and not low_allowed):
        bracket = "[" if low_allowed else "("
        end = f"{high:g}]" if high < float("inf") else "inf)"
        raise UserError(f"{_name(owner)}: {name}={value!r} must be a number in {bracket}{low:g}, {end}.")
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
    if value not in allowed:
        raise UserError(f"{_name(owner)}: {name}={value!r} must be one of {', '.join(allowed)}.")
    return value


def _name(owner: object) -> str:
    return getattr(owner, "__name__", type(owner).__name__)
