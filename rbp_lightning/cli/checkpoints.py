"""Reading a checkpoint that the user names, and saying what is wrong with it."""

import zipfile
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace, dict_to_namespace
from lightning.pytorch import LightningModule
from torch import Tensor

from rbp_lightning.errors import UserError


class NamedCheckpoint:
    """A checkpoint that is named on the command line. It is read without executing anything in it.

    Args:
        path: The checkpoint's file.

    Raises:
        UserError: If the file is missing, is damaged or is no checkpoint of a LightningModule.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        if not Path(path).is_file():
            raise UserError(f"ckpt_path={path!r} is not a file: name a checkpoint, such as last.ckpt of a run.")
        try:
            # PyTorch does not look at the sums of the archive's members.
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise zipfile.BadZipFile(damaged)
            content: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
            if missing := {"state_dict", "pytorch-lightning_version"} - content.keys():
                raise KeyError(missing)
        except Exception as error:  # whatever damaged bytes make of the readers
            raise UserError(f"ckpt_path={path!r} is corrupt, or is no checkpoint of a LightningModule.") from error
        self.hyperparameters: dict[str, Any] = content.get("hyper_parameters") or {}
        self.shapes = _shapes(content["state_dict"])

    @classmethod
    def of(cls, subcommand: str, path: str | None) -> "NamedCheckpoint | None":
        """Returns the checkpoint that a subcommand names, if it names one that is a file here.

        Args:
            subcommand: The subcommand.
            path: Its ``ckpt_path``. When fitting, "last" is the newest checkpoint if there is one.
        """
        elsewhere = path is None or "://" in path or (subcommand, path) in (("fit", "last"), ("fit", "hpc"))
        return None if path is None or elsewhere else cls(path)

    def model_config(self, config: Namespace) -> dict[str, Any]:
        """Returns the configuration of the checkpoint's model, and prints what in the given one it replaces.

        Args:
            config: The model's configuration, ``class_path`` and ``init_args``.

        Raises:
            UserError: If the checkpoint is of another class.
        """
        saved = self.hyperparameters.get("_class_path", config.class_path)
        if saved != config.class_path:
            raise UserError(
                f"ckpt_path={self.path!r} is a checkpoint of {saved}, not of {config.class_path}: give the model that "
                "it is of."
            )
        own = ("_class_path", "_instantiator", "estimator")  # not the model's arguments
        arguments = {name: value for name, value in self.hyperparameters.items() if name not in own}
        given, replacing = config.get("init_args") or {}, dict_to_namespace(arguments)
        for name in sorted(set(replacing.keys()) & set(given.keys())):  # also those of an argument that is a class
            if replacing[name] != given[name]:
                print(f"The checkpoint's {name}={replacing[name]} takes the place of {given[name]}.")
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
                    f"{type(model).__name__}: give the model, with the arguments, that it is of."
                )


def _shapes(state_dict: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    # A module's extra state need not be a tensor.
    return {name: tuple(value.shape) for name, value in state_dict.items() if isinstance(value, Tensor)}
