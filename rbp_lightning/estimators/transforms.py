"""Solves within the transforms of torch.func and in forward mode."""

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
"""What PyTorch says of a level that has ended."""


class Transforms:
    """The transforms of torch.func around the call of a solve, and a dual level of forward mode.

    A solve runs outside them, on plain tensors, so that it can be read for convergence: a dimension that vmap hides is
    one more batch dimension, and tangents are left out. The update alone is applied inside. What is returned is
    differentiated inside again.

    Attributes:
        batch_sizes: Sizes of the dimensions that vmap hides, the outermost first.
        vmap_levels: The levels of these vmaps.
        forward_mode: Whether tangents are asked for.

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
        self.forward_mode = forward_ad._current_level >= 0
        self._stack: list[Any] = []

    @staticmethod
    def around_call() -> "Transforms | None":
        """Those that are active; ``None`` if there are none."""
        if peek_interpreter_stack() is None and forward_ad._current_level < 0:
            return None
        return Transforms()

    @contextmanager
    def outside(self) -> Iterator[None]:
        """Leaves the transforms for as long as the context lasts."""
        with temporarily_clear_interpreter_stack() as self._stack, forward_ad._set_fwd_grad_enabled(False):
            yield

    def lift(self, tensor: Tensor) -> Tensor:
        """Hides the dimensions that vmap hides.

        Args:
            tensor: A plain tensor, whose first dimensions are these.
        """
        for level in self.vmap_levels:
            tensor = _add_batch_dim(tensor, 0, level)
        return tensor

    def lower(self, tensor: Any) -> Any:
        """Shows what vmap hides as the first dimensions, and leaves out what grad and jvp follow.

        Args:
            tensor: A tensor within the transforms; anything else is returned as it is.
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
        """A state as plain tensors, detached."""
        return tree_map(lambda leaf: self.lower(leaf.detach() if isinstance(leaf, Tensor) else leaf), state)

    def lowered(self, update: Update) -> Update:
        """An update as a map of plain states, to be used within ``outside``.

        Args:
            update: The update.
        """
        first = True

        def apply(state: State) -> State:
            nonlocal first
            # What the first application computes once and keeps has to have its tangents.
            with (
                temporarily_clear_interpreter_stack(),
                temporarily_restore_interpreter_stack(self._stack),
                forward_ad._set_fwd_grad_enabled(first),
                sdpa_kernel(SDPBackend.MATH),  # fused kernels have no tangents, and the update may not be taped again
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
                    "A solve within torch.func wants the update once more after the transform has ended: use an "
                    "estimator that applies it in the solve alone, such as Implicit(GMRES())."
                ) from error

        return apply_or_refuse

    def lifted_figures(self, fixed_point: FixedPoint) -> FixedPoint:
        """A result whose figures have the shapes that they have within the transforms.

        Args:
            fixed_point: The result, with figures as they are outside.
        """
        if not self.batch_sizes:
            return fixed_point
        names = ("absolute_residual", "size", "sample_status", "history")
        return replace(
            fixed_point, **tree_map_only(Tensor, self.lift, {name: getattr(fixed_point, name) for name in names})
        )


def is_batched(tensors: Sequence[Tensor]) -> bool:
    """Whether ``is_grads_batched`` has made a batch of some gradients."""
    return any(torch._C._functorch.is_legacy_batchedtensor(tensor) for tensor in tensors)


def for_each_in_batch(function: Callable[..., Sequence[Tensor]], tensors: Sequence[Tensor]) -> Sequence[Tensor]:
    """Calls a function that cannot be batched for each entry of the batch that ``is_grads_batched`` makes.

    Args:
        function: Takes the tensors, and returns tensors of their shapes.
        tensors: The tensors.
    """
    if not is_batched(tensors):
        return function(*tensors)
    level = torch._C._vmapmode_decrement_nesting() + 1  # nothing may be drawn at random within
    try:
        whole = [torch._remove_batch_dim(tensor, level, 1, 0) for tensor in tensors]
        size = max(len(one) for one in whole)
        whole = [one.expand(size, *one.shape[1:]) for one in whole]
        results = [function(*entries) for entries in zip(*whole, strict=True)]
    finally:
        torch._C._vmapmode_increment_nesting()
    return [torch._add_batch_dim(torch.stack(one), 0, level) for one in zip(*results, strict=True)]
