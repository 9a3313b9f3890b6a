"""Merging a checkpoint's model arguments into a config's, without running anything that the file names."""

import enum
import inspect
import sys
import typing
from collections.abc import Collection, Mapping
from typing import Any

from rbp_lightning.checkpoint_file import shown
from rbp_lightning.cli.classes import parameter_type
from rbp_lightning.errors import UserError

_CLASS_KEYS = {"class_path", "init_args", "dict_kwargs"}


class SavedArguments:
    """Takes plain values from a checkpoint, and all that could be looked up, imported or opened from the config.

    Numbers, booleans, ``None`` and lists of them come from the checkpoint. So does a string if the parameter's type is
    a ``Literal`` or an enumeration that contains it. Any other difference is an error, unless the user trusts the
    checkpoint.

    Args:
        source: The checkpoint's name in messages.
        explicit: Names, as from ``option_name``, of the given values to keep.
        trusted: Whether to take classes, paths and strings from the checkpoint as well.

    Attributes:
        overridden: Name, saved value and given value of each argument taken from the checkpoint.
    """

    def __init__(self, source: str, explicit: Collection[str] = (), trusted: bool = False) -> None:
        self.source, self.explicit, self.trusted = source, explicit, trusted
        self.overridden: list[tuple[str, Any, Any]] = []

    def over_class(self, given: Mapping[str, Any], saved: Mapping[str, Any], name: str = "") -> Any:
        """Merges the saved arguments of a class into the given ones.

        Args:
            given: ``class_path`` and ``init_args`` of the config.
            saved: The same of the checkpoint, with no arguments that the config lacks.
            name: The dotted name of the argument that takes the class.

        Returns:
            The config's class with the merged arguments. Every string in it is the config's, or a listed choice.

        Raises:
            UserError: If they differ in more than plain values.
        """
        owner = imported_class(given["class_path"])
        merged = dict(given)
        for key in ("init_args", "dict_kwargs"):
            there, here = ({} if part.get(key) is None else part[key] for part in (saved, given))
            if not isinstance(there, dict) or there.keys() - here.keys():
                return self._other(name, given, saved)
            for argument, value in there.items():
                annotation = parameter_type(owner, argument) if owner is not None else None
                where = f"{name}.{key}.{argument}".lstrip(".").removeprefix("init_args.")
                here = {**here, argument: self._over(here[argument], value, annotation, where)}
            if here:
                merged[key] = here
        return merged

    def _over(self, given: Any, saved: Any, annotation: Any, name: str) -> Any:
        if _same(given, saved) or (option_name(name) in self.explicit and not _holds_dict(given)):
            return given
        if isinstance(given, dict) and isinstance(saved, dict):
            if _names_one_class(given, saved):
                return self.over_class(given, saved, name)
            if given.keys() == saved.keys() and "class_path" not in given:
                return {key: self._over(given[key], saved[key], annotation, f"{name}.{key}") for key in given}
        elif _is_plain(saved, _choices(annotation)) and not _holds_dict(given):
            self.overridden.append((name, saved, given))
            return saved
        elif isinstance(given, list) and isinstance(saved, list | tuple) and len(given) == len(saved):
            pairs = enumerate(zip(given, saved, strict=True))
            return [self._over(here, there, annotation, f"{name}[{index}]") for index, (here, there) in pairs]
        return self._other(name, given, saved)

    def _other(self, name: str, given: Any, saved: Any) -> Any:
        """Returns the saved value if it is trusted, where the two differ in more than plain values."""
        if self.trusted:
            self.overridden.append((name, saved, given))
            return saved
        option = name.replace(".init_args", "")
        raise UserError(
            f"{self.source} has model.{option}={shown(saved)}, the command line {shown(given)}: a checkpoint may not "
            f"choose classes, paths or strings. Set --model.{option} to the value it was trained with or, if you trust "
            "whoever made the file, --trust_checkpoint=true."
        )


def imported_class(path: object) -> type | None:
    """Returns the class of a path if it has been imported; imports nothing.

    Args:
        path: The value of ``class_path`` in a config or a checkpoint.

    Example:
        >>> imported_class("torch.nn.Linear").__name__
        'Linear'
    """
    module, _, name = path.rpartition(".") if isinstance(path, str) else ("", "", "")
    # Not getattr: a module's __getattr__ could import something.
    found = vars(sys.modules[module]).get(name) if module in sys.modules else None
    return found if inspect.isclass(found) else None


def _names_one_class(given: dict[str, Any], saved: dict[str, Any]) -> bool:
    if "class_path" not in given or "class_path" not in saved or saved.keys() - _CLASS_KEYS:
        return False
    here, there = given["class_path"], saved["class_path"]
    if not isinstance(there, str):
        return False
    return bool(here == there) or (imported_class(here) is not None and imported_class(here) is imported_class(there))


def option_name(name: str) -> str:
    """The dotted name of an argument without ``init_args`` and ``dict_kwargs``.

    Args:
        name: The dotted name.

    Example:
        >>> option_name("cell.init_args.dims")
        'cell.dims'
    """
    return ".".join(part for part in name.split(".") if part not in ("init_args", "dict_kwargs"))


def _same(given: Any, saved: Any) -> bool:
    if isinstance(given, bool) != isinstance(saved, bool):
        return False
    if isinstance(given, list) and isinstance(saved, list | tuple):
        return len(given) == len(saved) and all(map(_same, given, saved))
    if isinstance(given, dict) and isinstance(saved, dict):
        return given.keys() == saved.keys() and all(_same(given[key], saved[key]) for key in given)
    plain = isinstance(saved, int | float | str | None)
    return plain and (given == saved or (given != given and saved != saved))


def _is_plain(value: Any, choices: set[str]) -> bool:
    """Whether a value is a number, ``None``, a listed choice, or a list of these."""
    if isinstance(value, list | tuple):
        return all(_is_plain(one, choices) for one in value)
    if isinstance(value, int):
        return -(2**63) <= value < 2**63
    return value is None or isinstance(value, float) or (isinstance(value, str) and value in choices)


def _holds_dict(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(map(_holds_dict, value)))


def _choices(annotation: Any) -> set[str]:
    """The strings that a type lists."""
    if inspect.isclass(annotation) and issubclass(annotation, enum.Enum):
        return set(annotation.__members__)
    arguments = typing.get_args(annotation)
    if typing.get_origin(annotation) is typing.Literal:
        return {one for one in arguments if isinstance(one, str)}
    return {text for argument in arguments for text in _choices(argument)}
