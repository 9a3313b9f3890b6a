"""Solves within transforms of torch.func, and in forward mode."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    TransformType,
    _add_batch_dim,
    _remove_batch_dim,
    _unwrap_for_grad,
    maybe_get_level,
    peek_interpreter_stack,
)
from torch._functorch.pyfunctorch import (
    retrieve_all_functorch_interpreters,
    temporarily_clear_interpreter_stack,
    temporarily_restore_interpreter_stack,
)
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_map, tree_map_only

from rbp_lightning.errors import UserError
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.pytree import State
from rbp_lightning.state_function import Update

_ENDED = "bad optional access"
"""PyTorch's error for a transform level that has ended."""


def in_forward_mode() -> bool:
    """Whether a level of forward mode is active, in which tensors may have tangents."""
    return forward_ad._current_level >= 0


class Transforms:
    """The torch.func transforms, and the dual level of forward mode, in which a solve is called.

    A solve runs outside the transforms, on plain tensors, so that it can check convergence: the vmapped dimensions
    become batch dimensions, and tangents are dropped. Only the update is applied inside the transforms, where the
    result is differentiated again.

    Attributes:
        batch_sizes: Sizes of the vmapped dimensions, the outermost first.
        vmap_levels: Levels of the vmaps.
        forward_mode: Whether forward mode is active.

    Example:
        >>> Transforms.around_call() is None
        True
        >>> torch.func.vmap(lambda x: x + len(Transforms.around_call().batch_sizes))(torch.zeros(2))
        tensor([1., 1.])
    """

    def __init__(self) -> None:
        interpreters = [] if peek_interpreter_stack() is None else retrieve_all_functorch_interpreters()
        self._levels = [(interpreter.key(), interpreter.level()) for interpreter in interpreters]
        for kind, _ in self._levels:
            if kind not in (TransformType.Grad, TransformType.Jvp, TransformType.Vmap):
                raise UserError(f"A solve cannot be transformed by torch.func's {kind.name.lower()}.")
        vmaps = [one for one, (kind, _) in zip(interpreters, self._levels, strict=True) if kind == TransformType.Vmap]
        self.batch_sizes = tuple(one.batch_size() for one in vmaps)  # type: ignore[attr-defined]
        self.vmap_levels = tuple(one.level() for one in vmaps)
        self.forward_mode = in_forward_mode()
        self._stack: list[Any] = []

    @staticmethod
    def around_call() -> "Transforms | None":
        """The active transforms; ``None`` if there are none."""
        if peek_interpreter_stack() is None and not in_forward_mode():
            return None
        return Transforms()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Context manager that leaves the transforms."""
        with temporarily_clear_interpreter_stack() as self._stack, forward_ad._set_fwd_grad_enabled(False):
            yield

    def lift(self, tensor: Tensor) -> Tensor:
        """Moves a plain tensor into the vmaps.

        Args:
            tensor: A plain tensor, whose first dimensions are the vmapped ones.
        """
        for level in self.vmap_levels:
            tensor = _add_batch_dim(tensor, 0, level)
        return tensor

    def lower(self, tensor: Any) -> Any:
        """Moves a tensor out of the transforms: vmapped dimensions become the first ones, and grad and jvp are dropped.

        Args:
            tensor: A tensor within the transforms; any other value is returned unchanged.
        """
        if not isinstance(tensor, Tensor):
            return tensor
        sizes = list(self.batch_sizes)
        for kind, level in reversed(self._levels):
            if kind == TransformType.Vmap:
                tensor = _remove_batch_dim(tensor, level, sizes.pop(), 0)
            elif maybe_get_level(tensor) == level:
                tensor = _unwrap_for_grad(tensor, level)
        return tensor

    def lowered_state(self, state: State) -> State:
        """A state as detached plain tensors."""
        return tree_map(lambda leaf: self.lower(leaf.detach() if isinstance(leaf, Tensor) else leaf), state)

    def lowered(self, update: Update) -> Update:
        """An update of plain states, for use within ``outside``.

        Args:
            update: The update.
        """
        first = True

        def apply(state: State) -> State:
            nonlocal first
            # Forward mode is enabled in the first application, so that values that F caches have their tangents.
            with (
                temporarily_clear_interpreter_stack(),
                temporarily_restore_interpreter_stack(self._stack),
                forward_ad._set_fwd_grad_enabled(first),
                sdpa_kernel(SDPBackend.MATH),  # fused kernels have no forward mode
            ):
                first = False
                return tree_map(self.lower, update(tree_map(self.lift, state)))

        def apply_or_refuse(state: State) -> State:
            try:
                return apply(state)
            except RuntimeError as error:
                if _ENDED not in str(error):
                    raise
                raise UserError(
                    "A solve within torch.func needs the update again after the transform has ended: use an estimator "
                    "that applies it only in the solve, such as Implicit(GMRES())."
                ) from error

        return apply_or_refuse

    def lifted_figures(self, fixed_point: FixedPoint) -> FixedPoint:
        """A result whose residuals and status codes are moved into the transforms.

        Args:
            fixed_point: The result outside the transforms.
        """
        if not self.batch_sizes:
            return fixed_point
        names = ("absolute_residual", "size", "sample_status", "history")
        return replace(
            fixed_point, **tree_map_only(Tensor, self.lift, {name: getattr(fixed_point, name) for name in names})
        )


def is_batched(tensors: Sequence[Tensor]) -> bool:
    """Whether gradients are batched by ``is_grads_batched``."""
    return any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)


def for_each_in_batch(function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Calls a function that does not support batching for each entry of a batch of ``is_grads_batched``.

    Args:
        function: Maps the tensors to tensors of the same shapes.
        tensors: The tensors, which may be batched.
    """
    if not is_batched(tensors):
        return function(*tensors)
    level = torch._C._vmapmode_decrement_nesting() + 1  # random functions are not allowed in legacy vmap
    try:
        whole = [torch._remove_batch_dim(tensor, level, 1, 0) for tensor in tensors]
        size = max(len(one) for one in whole)
        whole = [one.expand(size, *one.shape[1:]) for one in whole]
        results = [function(*entries) for entries in zip(*whole, strict=True)]
    finally:
        torch._C._vmapmode_increment_nesting()
    return [torch._add_batch_dim(torch.stack(one), 0, level) for one in zip(*results, strict=True)]
