"""The states of PyTorch's global random generators, read and set by one thread at a time."""

import os
import threading
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

# PyTorch holds the mutex of a generator while it creates the tensor of its state, which can start a garbage collection.
# A callback or finaliser of that can pass the GIL on to a thread that keeps it while waiting for the mutex: a deadlock.
_LOCK = threading.RLock()

if hasattr(os, "register_at_fork"):  # a child would wait for ever for a thread that it does not have
    os.register_at_fork(before=_LOCK.acquire, after_in_parent=_LOCK.release, after_in_child=_LOCK.release)

_CPU = torch.device("cpu")


def get_rng_states(devices: Iterable[torch.device]) -> dict[torch.device, Tensor]:
    """Returns the states of the global generators of the CPU and of CUDA devices.

    Args:
        devices: The devices; those other than CUDA devices add nothing.

    Example:
        >>> states = get_rng_states([])
        >>> drawn = torch.rand(3)
        >>> set_rng_states(states)
        >>> torch.equal(torch.rand(3), drawn)
        True
    """
    cuda = sorted({device for device in devices if device.type == "cuda"}, key=str)
    with _LOCK:
        return {_CPU: torch.get_rng_state(), **{device: torch.cuda.get_rng_state(device) for device in cuda}}


def set_rng_states(states: Mapping[torch.device, Tensor]) -> None:
    """Sets global generators to earlier states.

    Args:
        states: The states from ``get_rng_states``.
    """
    with _LOCK:
        for device, state in states.items():
            if device.type == "cuda":
                torch.cuda.set_rng_state(state, device)
            else:
                torch.set_rng_state(state)
