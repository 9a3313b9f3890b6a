"""The help of a subcommand: this project's options first, Lightning's last, in plain text."""

import re
from argparse import Action, _ArgumentGroup
from typing import Any, NamedTuple

from jsonargparse import ArgumentParser, DefaultHelpFormatter

from rbp_lightning.overview import program


class Section(NamedTuple):
    """Options that belong together.

    Attributes:
        title: Their heading.
        text: What they are for, where that needs words.
        names: The options, or what their names begin with.
    """

    title: str
    text: str | None
    names: tuple[str, ...]


_DESCRIPTIONS = {
    "fit": "Trains a model.",
    "validate": "Measures a model on the validation data.",
    "test": "Measures a model on the test data.",
    "predict": "Lets a model predict.",
    "audit": "Compares the gradients of all estimators with the exact one, on training batches, and trains nothing.",
}

_SECTIONS = (
    Section(
        "Gradient",
        "How fixed points are found, and how the gradient gets through them. --estimator.help lists the estimators, "
        "--estimator.help NAME the options of one, such as --estimator.steps and --estimator.solver.tol.",
        ("estimator",),
    ),
    Section("Failures", "What is done where a fixed point or its gradient goes wrong.", ("policy",)),
    Section(
        "Monitor",
        "--trainer.callbacks+=EquilibriumMonitor logs how far fixed points and gradients can be trusted, with plots. "
        "--trainer.callbacks.help lists all callbacks.",
        (),
    ),
    Section(
        "Checkpoints",
        "last.ckpt and best.ckpt of each run are kept in its folder.",
        ("checkpoint", "ckpt_path", "trust_checkpoint", "weights_only"),
    ),
    Section(
        "Model and data",
        "Classes by their names or paths. --model.help lists the models, --model.help NAME the options of one, such as "
        "--model.learning_rate; so does --data.help.",
        ("model", "data"),
    ),
    Section("Optimizer", "In place of the model's own. --optimizer.help lists them.", ("optimizer", "lr_scheduler")),
    Section("Run", None, ("config", "print_config", "seed_everything", "debug", "help")),
    Section("Lightning's Trainer", "Where classes are to be named, --trainer.NAME.help lists them.", ("trainer",)),
)


_CLASS = "A name, a class path, or a YAML file with class_path and init_args."

_HELP = {
    "ckpt_path": "The checkpoint to continue from, or to load: a file, last or best for the newest run's, or for fit "
    "auto, the run's own if it has one.",
    "weights_only": "Leave it out: of a checkpoint no more is ever loaded than its values.",
    "seed_everything": "The seed; true draws one.",
}
"""In place of Lightning's, which say what is otherwise here."""


class PlainHelp(DefaultHelpFormatter):
    """Leaves out what ``--NAME.help`` is for, and the markup of docstrings.

    Example:
        >>> PlainHelp("train.py")._plain("See :meth:`~lightning.Trainer.fit` and ``True``.")
        'See fit and True.'
    """

    def add_argument(self, action: Action) -> None:
        """Adds an option to the help, unless it only asks for help itself."""
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
    """Puts a subcommand's options into sections, this project's first, and explains some of them anew.

    Args:
        parser: The subcommand's parser.
        subcommand: Its name.

    Returns:
        Groups for the parser's help.
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
    for section in (Section(f"{subcommand.capitalize()} itself", None, tuple(own)), *_SECTIONS):
        group: Any = _ArgumentGroup(parser, section.title, section.text)
        group._group_actions = [action for action in parser._actions if _name(action) in section.names]
        groups.append(group)
    return groups


def _name(action: Action) -> str:
    """``trainer`` of ``--trainer.devices``."""
    (long, *_) = [option for option in action.option_strings if option.startswith("--")]
    return long.removeprefix("--").partition(".")[0]
