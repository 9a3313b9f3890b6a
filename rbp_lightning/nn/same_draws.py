"""Replays the same random numbers in every application of an update."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_flatten, tree_unflatten

from rbp_lightning.pytree import State
from rbp_lightning.rng_states import get_rng_states, set_rng_states
from rbp_lightning.state_function import Update


class SameDraws:
    """Applies an update with the random numbers of its first application.

    The states of PyTorch's global generators, for the CPU and the state's device, are set to those before the first
    application, and restored afterwards, so that the next solve draws new numbers. An update that draws no random
    numbers costs two readings of the generator states in total. Other generators are not replayed, and another thread
    must not draw during an application.

    Example:
        >>> draws = SameDraws()
        >>> first, second = (draws(torch.nn.functional.dropout, torch.ones(8)) for _ in range(2))
        >>> torch.equal(first, second)
        True
    """

    def __init__(self) -> None:
        self._began: dict[torch.device, Tensor] | None = None
        self._draws = False
        self._dtypes: list[torch.dtype] = []
        self._devices: list[torch.device] = []
        self._kernels: AbstractContextManager[Any] = nullcontext()

    def __call__(self, update: Update, state: State) -> State:
        """Applies the update.

        Args:
            update: The function F.
            state: The state h.
        """
        if self._began is None:
            return self._first(update, state)
        if not self._draws:
            return update(state)
        before = get_rng_states(self._devices)
        set_rng_states(self._began)
        try:
            return self._apply(update, state)
        finally:
            set_rng_states(before)

    def _first(self, update: Update, state: State) -> State:
        leaves = tree_flatten(state)[0]
        self._dtypes = [leaf.dtype for leaf in leaves]
        self._devices = [leaf.device for leaf in leaves]
        began = get_rng_states(self._devices)
        image = self._apply(update, state)
        ended = get_rng_states(self._devices)
        moved = [device for device, one in began.items() if not torch.equal(one, ended[device])]
        self._began, self._draws = began, bool(moved)
        if any(device.type == "cuda" for device in moved):
            # Attention kernels differ in their dropout masks: with dropout, always use the math kernel, which has all
            # derivatives. On a CPU, PyTorch uses it with dropout anyway.
            self._kernels = sdpa_kernel(SDPBackend.MATH)
            set_rng_states(began)
            image = self._apply(update, state)
        return image

    def _apply(self, update: Update, state: State) -> State:
        # Random kernels fill memory in the order of the strides, and some depend on the dtype.
        leaves, structure = tree_flatten(state)
        leaves = [_with_contiguous_strides(leaf.to(dtype)) for leaf, dtype in zip(leaves, self._dtypes, strict=True)]
        with self._kernels:
            return update(tree_unflatten(leaves, structure))


def _with_contiguous_strides(leaf: Tensor) -> Tensor:
    """The leaf with the strides of a newly created tensor."""
    stride, strides = 1, list[int]()
    for size in reversed(leaf.shape):
        strides.insert(0, stride)
        stride *= max(size, 1)
    return leaf if leaf.stride() == tuple(strides) else leaf.reshape(-1).reshape(leaf.shape)
