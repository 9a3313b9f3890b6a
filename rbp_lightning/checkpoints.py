"""Reading a checkpoint that the user names, and saying what is wrong with it."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from lightning.pytorch import LightningModule

from rbp_lightning.errors import UserError


def read_checkpoint(path: str) -> dict[str, Any]:
    """Reads a checkpoint, tensors on the CPU, with nothing in it executed.

    Args:
        path: The checkpoint's file.

    Returns:
        Its content.

    Raises:
        UserError: If the file is missing or is no checkpoint of a LightningModule.
    """
    if not Path(path).is_file():
        raise UserError(f"ckpt_path={path!r} is not a file: name a checkpoint, such as last.ckpt of an earlier run.")
    try:
        checkpoint: dict[str, Any] = torch.load(path, weights_only=True, map_location="cpu")
        checkpoint["state_dict"]
    except (RuntimeError, EOFError, UnpicklingError, KeyError, TypeError) as error:
        raise UserError(f"ckpt_path={path!r} is corrupt, or is no checkpoint of a LightningModule.") from error
    return checkpoint


def model_arguments(path: str, checkpoint: dict[str, Any], class_path: str) -> dict[str, Any]:
    """Returns the arguments that a checkpoint's model was made with.

    Args:
        path: The checkpoint's file, for messages.
        checkpoint: Its content.
        class_path: Import path of the class that is to load it.

    Returns:
        The hyperparameters without the estimator's.

    Raises:
        UserError: If the checkpoint is of another class.
    """
    hyperparameters = checkpoint.get("hyper_parameters", {})
    saved = hyperparameters.get("_class_path", class_path)
    if saved != class_path:
        raise UserError(f"ckpt_path={path!r} is a checkpoint of {saved}, not of {class_path}: give the model it is of.")
    return {
        name: value
        for name, value in hyperparameters.items()
        if name not in ("_class_path", "_instantiator", "estimator")
    }


def check_parameters(path: str, checkpoint: dict[str, Any], model: LightningModule) -> None:
    """Checks that a model can load a checkpoint's parameters.

    Args:
        path: The checkpoint's file, for messages.
        checkpoint: Its content.
        model: The model that is to load it.

    Raises:
        UserError: If a parameter is missing, left over or of another shape.
    """
    saved = {name: tuple(tensor.shape) for name, tensor in checkpoint["state_dict"].items()}
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in sorted(saved.keys() | wanted.keys()):
        if saved.get(name) != wanted.get(name):
            raise UserError(
                f"ckpt_path={path!r} is a checkpoint of another model: its {name} has the shape {saved.get(name)}, "
                f"that of {type(model).__name__} {wanted.get(name)}: give the model, with the arguments, that it is of."
            )
