"""Saving and restoring the states of the global random generators."""

import random
from typing import Any

import numpy as np
import torch

from rbp_lightning.rng_states import get_rng_states, set_rng_states

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
    torch_states = get_rng_states([device])
    states = {
        "torch": torch_states[torch.device("cpu")],
        "python": random.getstate(),
        "numpy": {**twister, "state": {**twister["state"], "key": twister["state"]["key"].tolist()}},
    }
    return states | ({"cuda": torch_states[device]} if device.type == "cuda" else {})


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
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    cuda = {device: states["cuda"]} if device.type == "cuda" and "cuda" in states else {}
    set_rng_states({torch.device("cpu"): states["torch"], **cuda})
