"""One-line explanations of the parser's errors, with suggestions."""

import difflib
import inspect
import re
from collections.abc import Iterable
from pydoc import locate
from typing import Any

from jsonargparse import ArgumentParser

from rbp_lightning.cli.classes import argument_type, known_classes, parameter_type

# jsonargparse's remarks on its own types and on the alternatives it tried.
_NOISE = re.compile(
    r"Does not validate|Subtypes:|Errors:|Expected a path but|Not a valid subclass|Subclass types|a class path \(|"
    r"a dict with|Expected a <class '(NoneType|collections\.abc\.\w+)'>|Given value type|Given value: N(ested|ame)"
)
_NO_SUCH_CLASS = re.compile(
    r"Expected a dot import path|No module named|has no attribute|does not correspond to a subclass|is abstract"
)

# Python's errors where jsonargparse mistakes the type of a value.
_CONFUSED = {
    r"'(\w+)' object has no attribute '(keys|items)'": r"\1 is not a mapping of arguments",
    r"argument of type '(\w+)' is not iterable": r"\1 is not a class path",
    r"unhashable type: '(\w+)'": r"\1 is not a class path",
}

_LISTED = 20
"""The most classes that an error lists."""

_LONGEST = 300
"""The most characters kept of each line of jsonargparse's, which quotes whole values."""


def explain(message: str, parser: ArgumentParser) -> str:
    """Explains a parser's error in one line.

    Args:
        message: jsonargparse's message.
        parser: The parser of the subcommand.

    Returns:
        The explanation. For a wrong name of a class or an option, it suggests the closest name and lists the known
        ones.
    """
    if unrecognized := re.search(r"unrecognized arguments: ([^\s=]+)|does not accept option '([\w.]+)'", message):
        suggestion = _suggest_option(unrecognized[1] or f"--{unrecognized[2]}", list(parser._option_string_actions))
        return f"{_one_line(message)}.{suggestion} See --help, and --estimator.help NAME for an estimator's options."
    if command := re.search(r"argument subcommand: invalid choice: '([^']*)' \(choose from (.*)\)", message):
        known = ["sweep", *re.findall(r"\w+", command[2])]
        return f"there is no command {command[1]!r}.{did_you_mean(command[1], known)} Known: {', '.join(known)}."
    if re.search(r"required: \w+\.model\b", message):
        return f"{_one_line(message)}. Give one, or a config, such as a checkout's: --config configs/hopfield.yaml."
    keys = re.findall(r'Parser key "([\w.]+)"|--([\w.]+)\.help:', message)
    return _explain_value(message, [key or of_help for key, of_help in keys], parser)


def missing_package(message: str) -> str | None:
    """Explains in one line that a class, such as a logger, needs a package that is not installed.

    Args:
        message: jsonargparse's message about an object that it could not instantiate.

    Returns:
        The line; ``None`` if the message is about something else.

    Example:
        >>> missing_package("Problem with given class_path 'loggers.WandbLogger': Requirement 'wandb>=0.12' not met.")
        "WandbLogger needs wandb>=0.12, which is not installed: pip install 'wandb>=0.12', or use CSVLogger ..."
    """
    found = re.search(r"class_path '(?:\w+\.)*(\w+)':\s+Requirement '([^']+)' not met", message)
    if found is None:
        return None
    choose = "use CSVLogger or TensorBoardLogger" if found[1].endswith("Logger") else "choose another class"
    return f"{found[1]} needs {found[2]}, which is not installed: pip install '{found[2]}', or {choose}."


def did_you_mean(given: str, known: Iterable[str]) -> str:
    """Suggests the closest known name; returns an empty string if none is close.

    Args:
        given: The given name.
        known: The known names.

    Example:
        >>> did_you_mean("step", ["steps", "solver"])
        " Did you mean 'steps'?"
    """
    found = difflib.get_close_matches(given, list(known), n=1)
    return f" Did you mean {found[0]!r}?" if found else ""


def _suggest_option(given: str, known: list[str]) -> str:
    """Suggests options like ``did_you_mean``; for an option without its section, those that end in its name."""
    known = [option for option in known if not option.endswith((".help", "+"))]
    words = given.removeprefix("--").rpartition(".")[2]
    ends = [option for option in known if words and option.rpartition(".")[2].removeprefix("--").endswith(f"_{words}")]
    starts = [option for option in known if words and option.startswith(f"--{words}_")]
    same = [option for option in known if words and option.endswith(f".{words}")]
    if "." not in given and (found := [*same, *starts, *ends]):
        return f" Did you mean {' or '.join(map(repr, found[:2]))}?"
    return did_you_mean(given, known)


def _explain_value(message: str, keys: list[str], parser: ArgumentParser) -> str:
    """Explains what is wrong with the value of a key, which may be nested in others."""
    for confused, plain in _CONFUSED.items():
        message = re.sub(confused, plain, message)
    owners = re.findall(r"class_path '([\w.]+)'", message)
    reason = _one_line(
        re.sub(r"""Parser key "[\w.]+":|^--[\w.]+: |Problem with given class_path '[\w.]+':""", "", message)
    )
    where = f"--{'.'.join(keys)}: " if keys else ""
    if missing := re.search(r"arguments (?:is|are) required: ([\w.]+(?:, [\w.]+)*)", message):
        return f"{where}{reason}.{_choices(missing[1].split(', '), keys, owners)}"
    option = re.search(r"Option '([\w.]+)' is not accepted", message)
    owner = locate(owners[-1]) if option and owners else None
    if option and inspect.isclass(owner):
        options = list(inspect.signature(owner).parameters)
        suggestion = did_you_mean(option[1], options)
        return f"{where}{owner.__name__} has no option {option[1]!r}.{suggestion} Its options: {', '.join(options)}."
    known = list(known_classes(_type_of(keys, owners, parser))) if keys and _NO_SUCH_CLASS.search(message) else []
    if "is abstract" in message:
        reason = "name one of its classes, also to set just an option of it"
    if given := re.fullmatch(r"Given value: (.*)", reason):
        reason = f"{given[1]} is not a valid value"
    if not known:
        return f"{where}{reason or 'nothing was given, such as an empty string or standard input'}."
    unknown = re.search(r"Expected a dot import path string: (\S+)", message)
    # The last class path is the wrong one only if every key has one.
    wrong = unknown[1] if unknown else owners[-1] if len(owners) == len(keys) else ""
    # jsonargparse reads a file given as a class; its content must not be shown.
    named = f"there is no class {wrong!r}" if re.fullmatch(r"[\w.\-]*", wrong) else "its value is not a class"
    problem = where + (named if unknown else reason)
    listed = f"Known: {', '.join(known)}" if len(known) <= _LISTED else f"--{keys[0]}.help lists the known ones"
    return f"{problem}.{did_you_mean(wrong.rpartition('.')[2], known)} {listed}."


def _choices(missing: list[str], keys: list[str], owners: list[str]) -> str:
    """Lists the classes for missing arguments that take one."""
    owner = locate(owners[-1]) if owners else None
    if not inspect.isclass(owner):
        return ""
    known = {name: ", ".join(known_classes(parameter_type(owner, name))) for name in missing}
    return "".join(f" --{'.'.join([*keys, name])} is one of {names}." for name, names in known.items() if names)


def _one_line(message: str) -> str:
    lines = [re.sub(r"^(-( |$))+", "", line.strip())[:_LONGEST] for line in message.splitlines()]
    kept = list(dict.fromkeys(line for line in lines if line and not _NOISE.match(line)))
    given = [line for line in kept if line.startswith("Given value: ")]
    # Of nested values, the first one is enough.
    text = "; ".join([line for line in kept if line not in given] + ([] if "Got value" in message else given[:1]))
    return re.sub(r"Expected a <class '(\w+)'>", r"expected \1", text).removesuffix(".")


def _type_of(keys: list[str], owners: list[str], parser: ArgumentParser) -> Any:
    """The type of the last of nested keys; ``owners`` are the classes that the others name."""
    found = argument_type(parser, keys[0])
    for key, owner in zip(keys[1:], owners, strict=False):
        located = locate(owner)
        found = parameter_type(located, key) if inspect.isclass(located) else None
    return found
