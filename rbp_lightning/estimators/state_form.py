"""Converts states with complex or distributed tensors, dataclasses or ``None`` to pytrees of real tensors."""

from collections.abc import Callable
from dataclasses import fields, is_dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

from rbp_lightning.errors import UserError
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.pytree import State
from rbp_lightning.state_function import Update


class StateForm:
    """Converts states to pytrees of real tensors (the plain form), and back.

    A complex tensor becomes a real one with real and imaginary parts in an additional last dimension: the Jacobian of
    an update need not be complex linear, and the adjoint of the pairs follows PyTorch's convention for complex
    gradients. A dataclass becomes a dict of its fields, and ``None`` an empty tuple. A distributed tensor (DTensor,
    from tensor parallelism) is gathered in each process, so that a solver's norms and inner products are those of the
    whole state, at the cost of its memory; the update gets it with the placement of the initial state.

    Args:
        initial_state: The initial state, which determines the original form.

    Example:
        >>> form = StateForm({"a": torch.tensor([1 + 2j]), "b": None})
        >>> form.plain(form.initial_state)
        {'a': tensor([[1., 2.]]), 'b': ()}
        >>> form.original(form.plain(form.initial_state))
        {'a': tensor([1.+2.j]), 'b': None}
    """

    def __init__(self, initial_state: State) -> None:
        self.initial_state = initial_state

    @classmethod
    def if_needed(cls, initial_state: State, batch_dims: int) -> "StateForm | None":
        """The form of an initial state; ``None`` if it is a pytree of real tensors already.

        Args:
            initial_state: The initial state.
            batch_dims: The number of leading dimensions that index independent samples.

        Raises:
            UserError: If a complex leaf has fewer than ``batch_dims`` dimensions.
        """
        if type(initial_state) is Tensor and not initial_state.is_complex():
            return None
        try:
            leaves = tree_flatten(initial_state, is_leaf=_is_leaf)[0]
        except RecursionError:  # ``flatten_state`` reports it
            return None
        for leaf in leaves:
            if _is_complex(leaf) and leaf.dim() < batch_dims:
                raise UserError(
                    f"batch_dims={batch_dims}, but a leaf of the initial state has the shape {tuple(leaf.shape)}: the "
                    f"first {batch_dims} dimensions must be the same in all of them."
                )
        needed = any(_is_leaf(leaf) or _is_complex(leaf) or _is_distributed(leaf) for leaf in leaves)
        return cls(initial_state) if needed else None

    def plain(self, state: State) -> State:
        """The plain form of a state, a pytree of real tensors.

        Args:
            state: The state.
        """
        return tree_map(self._plain_leaf, state, is_leaf=_is_leaf)

    def original(self, plain: State) -> State:
        """The state of a plain form.

        Args:
            plain: A pytree of real tensors, as ``plain`` returns it.
        """
        return _original(self.initial_state, plain)

    def original_result(self, fixed_point: FixedPoint) -> FixedPoint:
        """A result with its states in the original form.

        Args:
            fixed_point: The result of a solve in the plain form.
        """
        states = tuple(self.original(state) for state in fixed_point.states)
        return replace(fixed_point, state=self.original(fixed_point.state), states=states)

    def plain_update(self, update: Update) -> Update:
        """An update of states in the plain form.

        Args:
            update: The function F.
        """
        return lambda state: self.plain(update(self.original(state)))

    def _plain_leaf(self, leaf: Any) -> State:
        if leaf is None:
            return ()
        if _is_leaf(leaf):  # a dataclass
            return {field.name: self.plain(getattr(leaf, field.name)) for field in fields(leaf)}
        if _is_distributed(leaf):
            leaf = leaf.full_tensor()
        return torch.view_as_real(leaf.resolve_conj()) if _is_complex(leaf) else leaf


def without_aux(update: Callable[[State], Any]) -> Update:
    """An update without its auxiliary output.

    Args:
        update: Returns a pair of the next state and auxiliary output.

    Raises:
        UserError: When it is applied, if it does not return a pair.
    """

    def apply(state: State) -> State:
        pair = update(state)
        if not isinstance(pair, tuple) or len(pair) != 2:
            raise UserError(
                f"has_aux=True, but the update returns a {type(pair).__name__}: return a pair of the next state and "
                "the auxiliary output."
            )
        return pair[0]

    return apply


def _is_leaf(value: Any) -> bool:
    return value is None or (is_dataclass(value) and not isinstance(value, type))


def _is_complex(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_complex()


def _is_distributed(value: Any) -> bool:
    return hasattr(value, "full_tensor")


def _original(like: State, plain: State) -> State:
    leaves, structure = tree_flatten(like, is_leaf=_is_leaf)
    pairs = zip(leaves, structure.flatten_up_to(plain), strict=True)
    return structure.unflatten([_original_leaf(one, other) for one, other in pairs])


def _original_leaf(like: Any, plain: Any) -> Any:
    if like is None:
        return None
    if _is_leaf(like):  # a dataclass
        parts = {field.name: _original(getattr(like, field.name), plain[field.name]) for field in fields(like)}
        return replace(like, **parts)
    if _is_complex(like):
        plain = torch.view_as_complex(plain.contiguous())
    return _distributed(like, plain) if _is_distributed(like) else plain


def _distributed(like: Any, whole: Tensor) -> Tensor:
    from torch.distributed.tensor import DTensor, Replicate

    everywhere = [Replicate()] * like.device_mesh.ndim
    tensor = DTensor.from_local(whole, like.device_mesh, everywhere, run_check=False)
    distributed: Tensor = tensor.redistribute(like.device_mesh, like.placements)
    return distributed
