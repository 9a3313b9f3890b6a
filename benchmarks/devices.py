"""The device that a benchmark runs on."""

import argparse

import torch

from rbp_lightning.errors import UserError


def add_device(parser: argparse.ArgumentParser) -> None:
    """Adds ``--device`` to a command line."""
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu", help="where to run")


def checked(name: str) -> torch.device:
    """The device of a name.

    Args:
        name: ``"cpu"`` or ``"cuda"``.

    Raises:
        UserError: If PyTorch finds no such device.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError("--device=cuda needs a CUDA device, and PyTorch finds none: give --device cpu.")
    return torch.device(name)


def synchronize(device: torch.device) -> None:
    """Waits for what a device has been given to do."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
