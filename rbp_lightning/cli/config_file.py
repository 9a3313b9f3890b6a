"""Strict reading of configuration files: UTF-8 text, and YAML without duplicate keys."""

import io
from typing import Any

import yaml
from jsonargparse import Namespace, get_loader, set_loader
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from rbp_lightning.errors import UserError

YAML = "strict_yaml"
"""The name under which jsonargparse knows the loader."""

MAX_ENTRIES = 100_000
"""The most entries of a configuration, counting those that an alias repeats."""

_SECTIONS = {"trainer", "policy", "checkpoint", "audit", *LightningCLI.subcommands()}
"""Sections that are not classes, and those of the subcommands."""


class ConfigParser(LightningArgumentParser):
    """Lightning's parser, with sections of its own in the help, and an error that names a file that is not text.

    Attributes:
        help_groups: The sections of the help; ``None`` keeps the parser's argument groups.
    """

    help_groups: list[Any] | None = None

    def format_help(self, *args: Any) -> str:
        """Returns the text of the help.

        Args:
            args: As for ``ArgumentParser.format_help``.
        """
        groups = self._action_groups
        self._action_groups = groups if self.help_groups is None else self.help_groups
        try:
            return super().format_help(*args)
        finally:
            self._action_groups = groups

    def dump(self, *args: Any, **kwargs: Any) -> str:
        """Returns a configuration as text. It has been parsed, so it is not checked again unless that is asked for.

        Args:
            args: As for ``ArgumentParser.dump``.
            kwargs: As for ``ArgumentParser.dump``.
        """
        text: str = super().dump(*args, **_unchecked(kwargs))
        return text

    def save(self, *args: Any, **kwargs: Any) -> None:
        """Writes a configuration to a file; it is checked as in ``dump``.

        Args:
            args: As for ``ArgumentParser.save``.
            kwargs: As for ``ArgumentParser.save``.
        """
        super().save(*args, **_unchecked(kwargs))

    def parse_path(self, cfg_path: Any, *args: Any, **kwargs: Any) -> Namespace:
        """Parses a file.

        Args:
            cfg_path: The file.
            args: As for ``ArgumentParser.parse_path``.
            kwargs: As for ``ArgumentParser.parse_path``.

        Raises:
            UserError: If the file is not UTF-8.
        """
        try:
            parsed: Namespace = super().parse_path(cfg_path, *args, **kwargs)
            return parsed
        except UnicodeDecodeError as error:
            raise UserError(
                f"--config: {cfg_path} is not UTF-8 text (byte {error.start}, {error.reason}): save it as UTF-8."
            ) from error


def _unchecked(options: dict[str, Any]) -> dict[str, Any]:
    """The options of ``dump`` and ``save``, by their new names where Lightning has the old one."""
    renamed = {"skip_unset" if name == "skip_none" else name: value for name, value in options.items()}
    return {"skip_validation": True, **renamed}


def load_yaml(text: str, path: str | None = None) -> Any:
    """Loads YAML as jsonargparse does.

    Args:
        text: A configuration, or the value of an option.
        path: The configuration's file; empty if it was given as text, ``None`` for the value of an option.

    Raises:
        YAMLError: If it is not valid YAML, repeats a key in a mapping, has aliases that are recursive or make it huge,
            or a configuration does not consist of options.

    Example:
        >>> load_yaml("steps: 3")
        {'steps': 3}
    """
    stream = io.StringIO(text)
    stream.name = path or "the text"  # for error messages
    try:
        node = yaml.compose(stream, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        if node is not None:
            _count_entries(node, {})
        content = get_loader("yaml")(text)
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None
    except (ValueError, TypeError, AttributeError, KeyError) as error:  # such as !!int abc
        raise yaml.YAMLError(f"a value is not of its type ({error})") from error

    if path is not None:
        _check_options(content, path)
    return content


def _check_options(content: Any, path: str) -> None:
    where = f"{path}: " if path else ""
    if not isinstance(content, dict):
        raise yaml.YAMLError(f"{where}it has no options: a configuration is a mapping, such as 'model: HopfieldMemory'")
    # A subcommand's options may be in a section of their own.
    inner = [part for part in content.values() if isinstance(part, dict) and "class_path" not in part]
    for options in (content, *inner):
        for section in _SECTIONS & options.keys():
            if not isinstance(options[section], dict | str):  # a string is a file's path
                given = f"{section}: {repr(options[section])[:40]}"
                raise yaml.YAMLError(f"{where}{given} is not a mapping of options: give some, or leave it out")


def _count_entries(node: yaml.Node, counts: dict[int, int]) -> int:
    """Counts the entries of a node and checks them; a count of 0 marks a node that is being visited."""
    if id(node) in counts:
        if counts[id(node)] == 0:
            raise yaml.constructor.ConstructorError(None, None, "an alias is recursive", node.start_mark)
        return counts[id(node)]
    counts[id(node)] = 0
    children: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        _check_keys([key for key, _ in node.value])
        children = [child for entry in node.value for child in entry]
    elif isinstance(node, yaml.SequenceNode):
        children = node.value
    total = 1 + sum(_count_entries(child, counts) for child in children)
    if total > MAX_ENTRIES:
        problem = f"more than {MAX_ENTRIES} entries, counting those that aliases repeat"
        raise yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
    counts[id(node)] = total
    return total


def _check_keys(keys: list[yaml.Node]) -> None:
    seen: dict[tuple[str, str], yaml.Node] = {}
    for key in keys:
        if not isinstance(key, yaml.ScalarNode):
            continue
        if first := seen.get((key.tag, key.value)):
            problem = f"{key.value!r} occurs twice, first in line {first.start_mark.line + 1}: remove one of them"
            raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
        seen[key.tag, key.value] = key


set_loader(YAML, load_yaml, (yaml.YAMLError,))
