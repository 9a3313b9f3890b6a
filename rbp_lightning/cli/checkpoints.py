"""The checkpoint that a command names: its model's arguments, and whether the model fits it."""

from typing import Any

from jsonargparse import Namespace
from lightning.pytorch import LightningModule
from torch import Tensor

from rbp_lightning.checkpoint_file import load_checkpoint
from rbp_lightning.cli.summary import print_once
from rbp_lightning.errors import UserError


class NamedCheckpoint:
    """A checkpoint that is named on the command line.

    Args:
        path: The checkpoint's file.

    Raises:
        UserError: If the file cannot be loaded.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        content = load_checkpoint(path)
        self.hyperparameters: dict[str, Any] = content.get("hyper_parameters") or {}
        self.shapes = _shapes(content["state_dict"])

    def model_config(self, config: Namespace) -> dict[str, Any]:
        """Returns the configuration of the checkpoint's model, and prints which given arguments it overrides.

        Args:
            config: The model's configuration, ``class_path`` and ``init_args``.

        Raises:
            UserError: If the checkpoint is of another class.
        """
        saved = self.hyperparameters.get("_class_path", config.class_path)
        if saved != config.class_path:
            raise UserError(
                f"ckpt_path={self.path!r} is a checkpoint of {saved}, not of {config.class_path}: set --model to "
                f"{saved}."
            )
        given = config.init_args.as_dict() if config.get("init_args") else {}
        # A module may save more than its arguments.
        arguments = {name: value for name, value in self.hyperparameters.items() if name in given}
        saved_values, given_values = _flat(arguments), _flat(given)
        for name in sorted(saved_values.keys() & given_values.keys()):
            if saved_values[name] != given_values[name]:
                print_once(f"The checkpoint's {name}={saved_values[name]} overrides {given_values[name]}.")
        return {"class_path": config.class_path, "init_args": arguments}

    def check_parameters(self, model: LightningModule) -> None:
        """Checks that a model can load the checkpoint's parameters.

        Args:
            model: The model that is to load it.

        Raises:
            UserError: If a parameter is missing, left over or of another shape.
        """
        wanted = _shapes(model.state_dict())
        for name in sorted(self.shapes.keys() | wanted.keys()):
            here, there = (shapes.get(name, "missing") for shapes in (wanted, self.shapes))
            if here != there:
                raise UserError(
                    f"ckpt_path={self.path!r} is a checkpoint of another model: {name} is {there} there and {here} in "
                    f"{type(model).__name__}: use the model and the arguments that it was trained with."
                )


def _flat(arguments: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Arguments by dotted name, those of arguments that are classes included."""
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat


def _shapes(state_dict: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    # A module's extra state need not be a tensor.
    return {name: tuple(value.shape) for name, value in state_dict.items() if isinstance(value, Tensor)}
