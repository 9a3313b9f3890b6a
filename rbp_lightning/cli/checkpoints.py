"""The checkpoint given by ``--ckpt_path``: finding it, taking its model's arguments, checking that the model fits."""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jsonargparse import Namespace
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.pytorch import LightningModule
from torch import Tensor

from rbp_lightning.checkpoint_file import load_checkpoint, shown
from rbp_lightning.cli.mistakes import find_mistake, find_user_error
from rbp_lightning.cli.run_folder import newest_checkpoint, own_checkpoint, requeued_checkpoint
from rbp_lightning.cli.saved_arguments import SavedArguments
from rbp_lightning.cli.saved_state import check_saved_state
from rbp_lightning.cli.summary import print_once
from rbp_lightning.errors import UserError


def checkpoint_path(config: Namespace) -> str | None:
    """Resolves the ``ckpt_path`` of a subcommand's configuration to a file.

    Args:
        config: The configuration, whose ``ckpt_path`` is a file, ``last``, ``best``, ``auto``, ``hpc`` or ``None``.

    Raises:
        UserError: If there is no such checkpoint.
    """
    path: str | None = config.ckpt_path
    if path in ("last", "best"):
        found: Path | None = newest_checkpoint(config.trainer, path)
    elif path == "auto":
        found = own_checkpoint(config.trainer)
    elif path == "hpc" or (path is None and SLURMEnvironment.detect()):
        # On a cluster Lightning would find this file itself, and load it unchecked.
        found = requeued_checkpoint(config.trainer)
        if found is None and path == "hpc":
            folder = Path(config.trainer.default_root_dir or ".")
            raise UserError(f"ckpt_path='hpc': {folder} has no hpc_ckpt_N.ckpt: give a checkpoint's path.")
    else:
        return path
    if found is None:
        return None
    print_once(f"Checkpoint: {found}")
    return str(found)


class NamedCheckpoint:
    """The checkpoint given on the command line.

    Unless the user trusts it, nothing that it names is looked up, imported or executed. Lightning later loads it with
    ``weights_only=True`` in any case.

    Args:
        path: The checkpoint's file.
        trusted: Whether to import and instantiate the classes named in its hyperparameters.

    Raises:
        UserError: If the file cannot be loaded, or its entries do not have Lightning's types.
    """

    def __init__(self, path: str, trusted: bool = False) -> None:
        self.path, self.trusted = path, trusted
        self.source = f"ckpt_path={path!r}"
        content = load_checkpoint(path)
        check_saved_state(content, self.source)
        saved = content.get("hyper_parameters")
        self.hyperparameters: dict[str, Any] = {} if saved is None else saved
        if not isinstance(self.hyperparameters, dict) or not all(isinstance(key, str) for key in self.hyperparameters):
            raise UserError(f"{self.source}: its hyper_parameters are not keyed by name: use another checkpoint.")
        self.kinds = _kinds(content["state_dict"])
        self.overridden: list[tuple[str, Any, Any]] = []

    def model_config(self, config: Mapping[str, Any], explicit: Collection[str] = ()) -> dict[str, Any] | None:
        """Returns the model's configuration with the checkpoint's arguments, and prints which ones changed.

        Args:
            config: The model's configuration in plain types, ``class_path`` and ``init_args``.
            explicit: Names, as from ``option_name``, of the given values to keep.

        Returns:
            The configuration; ``None`` if nothing changed. Every string in it comes from ``config`` or is a choice that
            the parameter's type lists.

        Raises:
            UserError: If the checkpoint is of another class, or its arguments differ in more than plain values.
        """
        saved = self.hyperparameters.get("_class_path", config["class_path"])
        if not isinstance(saved, str) or saved != config["class_path"]:
            another = shown(saved)[1:-1] if isinstance(saved, str) else shown(saved)
            raise UserError(
                f"{self.source} is a checkpoint of {another}, not of {config['class_path']}: set --model to {another}."
            )
        # A module may save hyperparameters that are not arguments.
        parts = {
            part: {name: self.hyperparameters[name] for name in config.get(part) or {} if name in self.hyperparameters}
            for part in ("init_args", "dict_kwargs")
        }
        arguments = SavedArguments(self.source, explicit, self.trusted)
        model: dict[str, Any] = arguments.over_class(config, parts)
        self.overridden = sorted(arguments.overridden, key=lambda one: one[0])
        for name, value, given in self.overridden:
            print_once(f"The checkpoint's {name}={value} overrides {given}.")
        return model if self.overridden else None

    @contextmanager
    def instantiating_model(self) -> Iterator[None]:
        """Names the checkpoint's values if the model cannot be instantiated with them.

        Raises:
            UserError: In place of another exception, if the checkpoint changed any argument.
        """
        try:
            yield
        except Exception as error:
            if self.trusted or not self.overridden or isinstance(error, OSError) or find_mistake(error):
                raise
            values = ", ".join(f"{name}={shown(value)}" for name, value, _ in self.overridden)
            reason = f"{type(error).__name__}: {error}"
            raise UserError(f"{self.source} has {values}, with which the model cannot be made: {reason}.") from error

    @contextmanager
    def running(self) -> Iterator[None]:
        """Names the checkpoint if Lightning or PyTorch cannot run from it.

        Raises:
            UserError: In place of an exception of theirs that does not explain a mistake in the input.
        """
        try:
            yield
        except (OSError, MemoryError, torch.cuda.OutOfMemoryError):
            raise
        except Exception as error:
            if find_mistake(error) or find_user_error(error):
                raise
            raise UserError(
                f"{self.source}: a run from it failed ({type(error).__name__}: {error}). It may be damaged or from "
                "another version: use another checkpoint (--debug shows where it failed)."
            ) from error

    def check_parameters(self, model: LightningModule) -> None:
        """Checks that a model can load the checkpoint's parameters.

        Args:
            model: The model.

        Raises:
            UserError: If a parameter is missing, unexpected, or of another shape or kind of number.
        """
        wanted = _kinds(model.state_dict())
        for name in sorted(self.kinds.keys() | wanted.keys()):
            here, there = (kinds.get(name, ("missing", "missing")) for kinds in (wanted, self.kinds))
            if here != there:
                differ = 0 if here[0] != there[0] else 1
                raise UserError(
                    f"{self.source} is a checkpoint of another model: {shown(name)[1:-1]} is {there[differ]} there "
                    f"and {here[differ]} in {type(model).__name__}: use the model and the arguments that it was "
                    "trained with."
                )


def _kinds(state_dict: dict[str, Any]) -> dict[str, tuple[Any, str]]:
    """Shape and kind of number of each tensor; precisions may differ."""
    # A module's extra state need not be a tensor.
    return {name: (tuple(value.shape), _kind(value)) for name, value in state_dict.items() if isinstance(value, Tensor)}


def _kind(tensor: Tensor) -> str:
    if tensor.is_meta or tensor.is_quantized:
        return "without values" if tensor.is_meta else "quantized"
    if tensor.is_complex() or tensor.dtype == torch.bool:
        return str(tensor.dtype)
    return "floating point" if tensor.is_floating_point() else "integer"
