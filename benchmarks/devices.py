"""The device that a benchmark runs on."""

from typing import Literal, TypeAlias

import torch

from rbp_lightning.errors import UserError

DeviceName: TypeAlias = Literal["cpu", "cuda"]


def available(name: DeviceName) -> torch.device:
    """Returns the device of this name.

    Args:
        name: ``"cpu"`` or ``"cuda"``.

    Raises:
        UserError: If PyTorch finds no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda needs a CUDA device, and PyTorch finds none: give --device cpu.")
    return torch.device(name)
