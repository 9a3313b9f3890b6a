"""The help of a subcommand in plain text: this project's options first, Lightning's last."""

import re
from argparse import Action, _ArgumentGroup
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from rbp_lightning.overview import program


class Section(NamedTuple):
    """A section of the help.

    Attributes:
        title: The heading.
        text: An explanation, if needed.
        names: The options, or the first parts of their dotted names.
    """

    title: str
    text: str | None
    names: tuple[str, ...]


_DESCRIPTIONS = {
    "fit": "Trains a model.",
    "validate": "Evaluates a model on the validation data.",
    "test": "Evaluates a model on the test data.",
    "predict": "Runs a model on the prediction data.",
    "audit": "Compares the gradients of the estimators with the exact gradient on training batches, without training.",
}

_SECTIONS = (
    Section(
        "Gradient",
        "How fixed points are solved, and how gradients are computed through them. --estimator.help lists the "
        "estimators, --estimator.help NAME the options of one, such as --estimator.steps and --estimator.solver.tol.",
        ("estimator",),
    ),
    Section("Failures", "What to do when a fixed point or its gradient is wrong.", ("policy",)),
    Section(
        "Monitor",
        "--trainer.callbacks+=EquilibriumMonitor logs, and plots, how accurate fixed points and gradients are. "
        "--trainer.callbacks.help lists all callbacks.",
        (),
    ),
    Section(
        "Checkpoints",
        "Each run keeps last.ckpt and best.ckpt in its folder.",
        ("checkpoint", "ckpt_path", "trust_checkpoint", "weights_only"),
    ),
    Section(
        "Model and data",
        "Classes, by name or class path. --model.help lists the models, --model.help NAME the options of one, such as "
        "--model.learning_rate; --data.help does the same for data modules.",
        ("model", "data"),
    ),
    Section("Optimizer", "Replaces the model's own. --optimizer.help lists them.", ("optimizer", "lr_scheduler")),
    Section("Run", None, ("config", "print_config", "seed_everything", "debug", "help")),
    Section("Lightning's Trainer", "For options that take a class, --trainer.NAME.help lists them.", ("trainer",)),
)


_CLASS = "A name, a class path, or a YAML file with class_path and init_args."

_HELP = {
    "ckpt_path": "The checkpoint to load or to resume from: a file, or last or best of the newest run. With fit also "
    "auto, the last checkpoint of this run if there is one.",
    "weights_only": "Leave it out: checkpoints are always loaded with weights_only=true.",
    "seed_everything": "The seed; true draws one at random.",
    "verbose": "Whether to print all metrics, in Lightning's table.",
}
"""Replaces help of Lightning's that does not apply here."""


class PlainHelp(DefaultHelpFormatter):
    """Omits the ``--NAME.help`` options, known subclasses and the markup of docstrings.

    Example:
        >>> PlainHelp("train.py")._plain("See :meth:`~lightning.Trainer.fit` and ``True``.")
        'See fit and True.'
    """

    def add_argument(self, action: Action) -> None:
        """Adds an option to the help, except for ``--NAME.help``."""
        if not action.dest.endswith(".help"):
            super().add_argument(action)

    def _expand_help(self, action: Action) -> str:
        return self._plain(super()._expand_help(action))

    def _plain(self, text: str) -> str:
        text = re.sub(r", known subclasses: [\w., ]+", "", text)
        text = re.sub(r'One or more arguments specifying "class_path".*\(type: .*(?=default: )', f"{_CLASS} (", text)
        text = re.sub(r"\{'class_path': '(?:\w+\.)*(\w+)'\}", r"\1", text)
        text = re.sub(r":\w+:`~?(?:[\w.]+\.)?(\w+)`", r"\1", text)
        return text.replace("``", "")


def arrange(parser: ArgumentParser, subcommand: str) -> list[Any]:
    """Arranges a subcommand's options in sections, this project's first.

    Args:
        parser: The subcommand's parser, whose usage, description and help texts are changed.
        subcommand: The subcommand's name.

    Returns:
        The groups of the parser's help.
    """
    parser.usage = f"{program()} {subcommand} [--config FILE] [--OPTION=VALUE ...]"
    parser.description = _DESCRIPTIONS[subcommand]
    for action in parser._actions:
        action.help = _HELP.get(_name(action), action.help)
        if str(action.metavar).startswith("CONFIG |"):
            action.metavar = "NAME"
    known = {name for section in _SECTIONS for name in section.names}
    own = [name for name in dict.fromkeys(map(_name, parser._actions)) if name not in known]
    groups = []
    for section in (Section(f"{subcommand.capitalize()} options", None, tuple(own)), *_SECTIONS):
        group: Any = _ArgumentGroup(parser, section.title, section.text)
        group._group_actions = [action for action in parser._actions if _name(action) in section.names]
        groups.append(group)
    return groups


def _name(action: Action) -> str:
    """The first part of an option's name: ``trainer`` of ``--trainer.devices``."""
    (long, *_) = [option for option in action.option_strings if option.startswith("--")]
    return long.removeprefix("--").partition(".")[0]
