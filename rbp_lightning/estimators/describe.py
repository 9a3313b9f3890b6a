"""Estimators and solvers as they would stand in a config, and back."""

import inspect
from collections.abc import Iterator, Mapping
from numbers import Integral, Real
from typing import Any

from rbp_lightning.checkpoint_file import shown
from rbp_lightning.errors import UserError
from rbp_lightning.linear.base import LinearSolver
from rbp_lightning.solvers import FixedPointSolver


def describe(configured: object) -> dict[str, Any]:
    """Describes an object by its class and the arguments it was made with, in plain types.

    Args:
        configured: An object; constructor arguments that it does not keep in attributes of the same name are left out.

    Returns:
        ``class_path`` and ``init_args``, as in a YAML config. An argument that has no plain form stands as its
        ``repr``, in a dict with that one key.

    Example:
        >>> describe(Richardson(steps=20))["init_args"]
        {'steps': 20, 'tol': 0.0001, 'start': 'gradient', 'seed': 0, 'check_every': 10}
    """
    init_args = {name: _plain(value) for name, value in _arguments(configured).items()}
    return {"class_path": _path(type(configured)), "init_args": init_args}


def _plain(value: Any) -> Any:
    if isinstance(value, FixedPointSolver | LinearSolver):
        return describe(value)
    # NumPy's numbers and enumerations would keep a checkpoint from being read without executing anything in it.
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
    """Writes an object as the call that makes it.

    Args:
        configured: An object that keeps its constructor arguments in attributes of the same name.

    Example:
        >>> as_call(FixedPointAdjoint(Anderson(60)))[:55]
        'FixedPointAdjoint(solver=Anderson(max_steps=60, tol=1e-'
    """
    return described_call(describe(configured))


def described_call(description: Mapping[str, Any]) -> str:
    """Writes a description as the call that makes what it describes.

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
    """Makes the object that ``describe`` described.

    Only subclasses of a base, with forward and linear solvers for their arguments, are made, and only those that have
    been imported: a description from a stranger's file can import and run nothing else.

    Args:
        description: ``class_path`` and ``init_args``.
        base: What it has to be a subclass of.

    Raises:
        UserError: If it is no description, or the class is unknown or does not take the arguments.

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
        raise UserError(f"{shown(description)} is no description: it needs a class_path, and init_args by name.")
    known = {_path(one): one for one in _subclasses(base)}
    if path not in known:
        raise UserError(f"{path!r} is no {base.__name__} that has been imported: import its module first.")
    arguments = {name: _made(path, name, value) for name, value in init_args.items()}
    try:
        return known[path](**arguments)
    except TypeError as error:
        raise UserError(f"{path} does not take the arguments {sorted(arguments)}: {error}.") from error


def _made(path: str, name: str, value: Any) -> Any:
    if not isinstance(value, dict):
        return value
    if "class_path" not in value:
        raise UserError(f"{path} was made with {name}={shown(value.get('repr'))}, which a description cannot hold.")
    linear = value["class_path"] in map(_path, _subclasses(LinearSolver))
    return from_description(value, LinearSolver if linear else FixedPointSolver)


def _path(one: type) -> str:
    return f"{one.__module__}.{one.__qualname__}"


def _arguments(configured: object) -> dict[str, Any]:
    names = inspect.signature(type(configured)).parameters
    return {name: getattr(configured, name) for name in names if hasattr(configured, name)}


def _subclasses(base: type) -> Iterator[type]:
    """A class that can be made and those below it; one that was defined again, as in a notebook, comes later."""
    if not inspect.isabstract(base):
        yield base
    subclass: type
    for subclass in type.__subclasses__(base):
        yield from _subclasses(subclass)
