"""Saving and restoring the states of the global random generators."""

import random
from typing import Any

import numpy as np
import torch

_WORDS = 624
"""The length of the state of NumPy's Mersenne Twister."""


def generator_states(device: torch.device) -> dict[str, Any]:
    """Returns the states of PyTorch's, Python's and NumPy's global generators, as values that a checkpoint can hold.

    Args:
        device: The device whose generator is included beside that of the CPU.

    Example:
        >>> states = generator_states(torch.device("cpu"))
        >>> drawn = torch.rand(3)
        >>> set_generator_states(states, torch.device("cpu"))
        >>> torch.equal(torch.rand(3), drawn)
        True
    """
    twister: Any = np.random.get_state(legacy=False)
    states = {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": {**twister, "state": {**twister["state"], "key": twister["state"]["key"].tolist()}},
    }
    return states | ({"cuda": torch.cuda.get_rng_state(device)} if device.type == "cuda" else {})


def set_generator_states(states: dict[str, Any], device: torch.device) -> None:
    """Restores the generators to earlier states.

    Args:
        states: The states from ``generator_states``.
        device: The device whose generator is set beside that of the CPU.

    Raises:
        ValueError: If NumPy's state is invalid, which NumPy itself does not check.
    """
    twister = states["numpy"]["state"]
    if len(twister["key"]) != _WORDS or not 0 <= twister["pos"] <= _WORDS:
        raise ValueError("the state of NumPy's generator is invalid")
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
