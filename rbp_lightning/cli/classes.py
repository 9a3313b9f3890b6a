"""The classes that an argument of the command line accepts."""

import contextlib
import inspect
import typing
from typing import Any

from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule
from torch import Tensor


def argument_type(parser: ArgumentParser, key: str) -> Any:
    """Returns the type of an argument, or ``None`` if there is no such argument.

    Args:
        parser: The parser of a subcommand.
        key: The argument, such as ``trainer.callbacks``.
    """
    actions = [action for action in parser._actions if action.dest == key]
    return getattr(actions[0], "_typehint", None) if actions else None


def parameter_type(owner: type, name: str) -> Any:
    """Returns the type of a constructor's parameter, or ``None`` if it has none.

    Args:
        owner: The class.
        name: The parameter, possibly of a base class.
    """
    for base in inspect.getmro(owner):
        with contextlib.suppress(NameError):  # a name imported only for type checkers
            hints = typing.get_type_hints(vars(base).get("__init__", object))
            if name in hints:
                return hints[name]
    return None


def known_classes(annotation: Any) -> dict[str, type]:
    """Finds the classes that an argument accepts by their short names.

    Args:
        annotation: The argument's type, such as ``list[Callback] | None``.

    Returns:
        The imported concrete subclasses by name, in alphabetical order.

    Example:
        >>> "Picard" in known_classes(FixedPointSolver | None)
        True
    """
    found = {}
    for base in _classes_in(annotation):
        for subclass in _subclasses(base):
            public = not subclass.__name__.startswith("_") and ".demos." not in subclass.__module__
            # A base class without a training step is not a model.
            bare = issubclass(subclass, LightningModule) and subclass.training_step is LightningModule.training_step
            if public and not bare and not inspect.isabstract(subclass):
                found[subclass.__name__] = subclass
    return dict(sorted(found.items()))


def _classes_in(annotation: Any) -> list[type]:
    inner = [found for argument in typing.get_args(annotation) for found in _classes_in(argument)]
    # Subclasses of numbers, collections and tensors are not worth suggesting.
    whole = inspect.isclass(annotation) and annotation.__module__ not in ("builtins", "collections.abc", "types")
    return [annotation] if whole and not inner and not issubclass(annotation, Tensor) else inner


def _subclasses(base: type) -> list[type]:
    direct: list[type] = type.__subclasses__(base)
    return direct + [found for subclass in direct for found in _subclasses(subclass)]
