"""Converts estimators and solvers to config dictionaries, and back."""

import inspect
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from rbp_lightning.checkpoint_file import shown
from rbp_lightning.errors import UserError
from rbp_lightning.linear.base import LinearSolver
from rbp_lightning.solvers import FixedPointSolver


def describe(configured: object) -> dict[str, Any]:
    """Describes an object by its class and constructor arguments, in plain types.

    Args:
        configured: The object. Constructor arguments that are not attributes of the same name are omitted.

    Returns:
        ``class_path`` and ``init_args``, as in a YAML config. An argument without a plain form is replaced by
        ``{"repr": repr(argument)}``.

    Example:
        >>> describe(Richardson(steps=20))["init_args"]
        {'steps': 20, 'tol': 0.0001, 'start': 'gradient', 'seed': 0, 'check_every': 10}
    """
    init_args = {name: _plain(value) for name, value in _arguments(configured).items()}
    return {"class_path": _path(type(configured)), "init_args": init_args}


def _plain(value: Any) -> Any:
    if isinstance(value, FixedPointSolver | LinearSolver):
        return describe(value)
    # NumPy numbers and enums must become plain types, so that a checkpoint loads with weights_only=True.
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return {"repr": repr(value)}


def as_call(configured: object) -> str:
    """Formats an object as the call of its constructor.

    Args:
        configured: An object with its constructor arguments as attributes of the same name.

    Example:
        >>> as_call(FixedPointAdjoint(Anderson(60)))[:55]
        'FixedPointAdjoint(solver=Anderson(max_steps=60, tol=1e-'
    """
    return described_call(describe(configured))


def described_call(description: Mapping[str, Any]) -> str:
    """Formats a description as the call of a constructor.

    Args:
        description: ``class_path`` and ``init_args``, as ``describe`` returns them.

    Example:
        >>> described_call({"class_path": "a.b.NeumannRBP", "init_args": {"steps": 5}})
        'NeumannRBP(steps=5)'
    """
    init_args: Mapping[str, Any] = description.get("init_args") or {}
    arguments = ", ".join(f"{name}={_written(value)}" for name, value in init_args.items())
    return f"{str(description.get('class_path')).rpartition('.')[2]}({arguments})"


def _written(value: Any) -> str:
    if isinstance(value, dict) and "class_path" in value:
        return described_call(value)
    return str(value["repr"]) if isinstance(value, dict) and "repr" in value else repr(value)


def from_description(description: Mapping[str, Any], base: type) -> Any:
    """Creates the object that a description describes.

    Only subclasses of ``base``, and solvers as their arguments, are created, and only if they have been imported
    already, so that a description from an untrusted file cannot import or run anything else.

    Args:
        description: ``class_path`` and ``init_args``.
        base: The base class of the object.

    Raises:
        UserError: If the description is invalid, or its class is unknown or does not take the arguments.

    Example:
        >>> from_description(describe(Picard(max_steps=20)), FixedPointSolver).max_steps
        20
    """
    path, init_args = description.get("class_path"), description.get("init_args", {})
    if (
        not isinstance(path, str)
        or not isinstance(init_args, dict)
        or not all(isinstance(one, str) for one in init_args)
    ):
        raise UserError(f"{shown(description)} is not a description: it needs a class_path, and init_args by name.")
    known = {_path(one): one for one in _subclasses(base)}
    if path not in known:
        raise UserError(f"{path!r} is not a {base.__name__} that has been imported: import its module first.")
    arguments = {name: _made(path, name, value) for name, value in init_args.items()}
    try:
        return known[path](**arguments)
    except TypeError as error:
        raise UserError(f"{path} does not take the arguments {sorted(arguments)}: {error}.") from error


def _made(path: str, name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        raise UserError(f"{path} was made with {name}={shown(value.get('repr'))}, which cannot be restored.")
    linear = value["class_path"] in map(_path, _subclasses(LinearSolver))
    return from_description(value, LinearSolver if linear else FixedPointSolver)


def _path(one: type) -> str:
    return f"{one.__module__}.{one.__qualname__}"


def _arguments(configured: object) -> dict[str, Any]:
    names = inspect.signature(type(configured)).parameters
    return {name: getattr(configured, name) for name in names if hasattr(configured, name)}


def _subclasses(base: type) -> Iterator[type]:
    """The concrete classes among a class and its subclasses; a redefined class, as in a notebook, comes later."""
    if not inspect.isabstract(base):
        yield base
    subclass: type
    for subclass in type.__subclasses__(base):
        yield from _subclasses(subclass)
