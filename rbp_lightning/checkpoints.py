"""Reading the hyperparameters of a checkpoint that the user names."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch

from rbp_lightning.errors import UserError


def model_hyperparameters(path: str, class_path: str) -> dict[str, Any]:
    """Reads the model's hyperparameters from a checkpoint.

    Args:
        path: The checkpoint's file.
        class_path: Import path of the model's class.

    Returns:
        The arguments the model was made with; those of the estimator are left out.

    Raises:
        UserError: If the file is missing, is no checkpoint, or is one of another model.
    """
    if not Path(path).is_file():
        raise UserError(f"ckpt_path={path!r} is not a file: name a checkpoint, such as last.ckpt of an earlier run.")
    try:
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
        state_dict, hyperparameters = checkpoint["state_dict"], dict(checkpoint.get("hyper_parameters", {}))
    except (RuntimeError, EOFError, UnpicklingError, KeyError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"ckpt_path={path!r} is corrupt or is no checkpoint ({reason}).") from error
    saved = hyperparameters.pop("_class_path", None)
    if saved is not None and saved != class_path:
        raise UserError(f"ckpt_path={path!r} is a checkpoint of {saved}, not of {class_path}: give the model it is of.")
    del state_dict
    return {name: value for name, value in hyperparameters.items() if name not in ("_instantiator", "estimator")}
