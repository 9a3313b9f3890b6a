"""``--vary KEY=VALUES``: the options that differ between the runs of a sweep."""

import json
import re
from dataclasses import dataclass
from itertools import product

import yaml

from rbp_lightning.errors import UserError

_RANGE = re.compile(r"(log|float|int):([^:]+):([^:]+)")

_REMEDY = "write KEY=VALUE,VALUE, such as estimator=NeumannRBP,CGRBP"


@dataclass(frozen=True)
class Variation:
    """An option of ``fit`` and the values to try.

    Attributes:
        key: The option, without dashes.
        values: Its values, as on a command line.
    """

    key: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """An option of ``fit`` and the range to search.

    Attributes:
        key: The option, without dashes.
        kind: ``log`` for a number on a logarithmic scale, ``float`` for one on a linear scale, ``int`` for an integer.
        low: The lowest value.
        high: The highest value, inclusive.
    """

    key: str
    kind: str
    low: float
    high: float


def parse_variation(text: str) -> Variation | Range:
    """Parses ``KEY=VALUE,VALUE`` or ``KEY=KIND:LOW:HIGH``.

    The values are parsed as a YAML list, so a mapping or a list is one value.

    Args:
        text: The text.

    Raises:
        UserError: If it has neither form, or repeats a value.

    Example:
        >>> parse_variation("estimator=NeumannRBP,{class_path: TBPTT, init_args: {steps: 5}}").values
        ('NeumannRBP', '{"class_path": "TBPTT", "init_args": {"steps": 5}}')
        >>> parse_variation("model.learning_rate=log:1e-4:1e-1")
        Range(key='model.learning_rate', kind='log', low=0.0001, high=0.1)
    """
    key, equals, given = text.partition("=")
    key = key.strip().removeprefix("--")
    if not (key and equals and given):
        raise UserError(f"--vary {text}: it has no values: {_REMEDY}.")
    if found := _RANGE.fullmatch(given):
        return _range(text, key, *found.groups())
    try:
        values = tuple(one if isinstance(one, str) else json.dumps(one) for one in yaml.safe_load(f"[{given}]"))
    except (yaml.YAMLError, TypeError) as error:  # a TypeError for dates
        raise UserError(f"--vary {text}: its values are not a YAML list: {_REMEDY}.") from error
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice or not values:
        problem = f"{twice[0]} is listed twice: list it once" if twice else f"it has no values: {_REMEDY}"
        raise UserError(f"--vary {text}: {problem}.")
    return Variation(key, values)


def _range(text: str, key: str, kind: str, *ends: str) -> Range:
    number = int if kind == "int" else float
    try:
        low, high = map(number, ends)
    except ValueError as error:
        raise UserError(f"--vary {text}: the ends of the range must be {number.__name__}s: correct them.") from error
    if not (0 if kind == "log" else float("-inf")) < low < high < float("inf"):
        raise UserError(f"--vary {text}: no {kind} range goes from {low} to {high}: give a lower and a higher end.")
    return Range(key, kind, low, high)


def combinations(variations: list[Variation]) -> list[dict[str, str]]:
    """Returns all combinations of values, by key; the last key varies fastest.

    Args:
        variations: The options that vary.

    Example:
        >>> combinations([Variation("a", ("1", "2")), Variation("b", ("3",))])
        [{'a': '1', 'b': '3'}, {'a': '2', 'b': '3'}]
    """
    keys = [one.key for one in variations]
    return [dict(zip(keys, values, strict=True)) for values in product(*(one.values for one in variations))]


def title(values: dict[str, str]) -> str:
    """Returns the name of a combination in tables: estimator, model and data by name, other values with their key.

    Args:
        values: The values, by key.

    Example:
        >>> title({"estimator": '{"class_path": "TBPTT", "init_args": {"steps": 5}}', "model.gain": "1.5"})
        'TBPTT(steps=5), model.gain=1.5'
    """
    named = [
        _shown(one) if key in ("estimator", "model", "data") else f"{key}={_shown(one)}" for key, one in values.items()
    ]
    return ", ".join(named) or "as configured"


def _shown(value: str) -> str:
    if not value.startswith("{"):
        return value
    content = json.loads(value)
    arguments = ", ".join(f"{name}={one}" for name, one in content.get("init_args", {}).items())
    return f"{content['class_path']}({arguments})" if "class_path" in content else value
