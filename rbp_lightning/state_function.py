"""The update F as a function of the leaves of a state, with checks of what it returns."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_structure, tree_unflatten

from rbp_lightning.errors import UserError
from rbp_lightning.pytree import FLOATS, State, Vector

Update: TypeAlias = Callable[[State], State]
"""The function F(h) whose fixed point is to be found; it closes over inputs and parameters."""

_CALLERS = (
    __name__,
    "rbp_lightning.estimators.random_draws",
    "rbp_lightning.estimators.transforms",
    "rbp_lightning.nn.same_draws",
)
"""The modules that call the update."""


class StateFunction:
    """F on the leaves of a state. The leaves of F(h) and h are matched by structure, not by position.

    Args:
        update: The function F.
        structure: Structure of the state.

    Raises:
        UserError: If ``update`` is not a function.

    Attributes:
        calls: Number of applications of F.

    Example:
        >>> from torch.utils._pytree import tree_flatten
        >>> leaves, structure = tree_flatten({"a": torch.zeros(1), "b": torch.ones(1)})
        >>> function = StateFunction(lambda h: {"b": h["b"] + 1, "a": h["a"]}, structure)
        >>> function(leaves), function.calls
        ([tensor([0.]), tensor([2.])], 1)
    """

    def __init__(self, update: Update, structure: TreeSpec) -> None:
        if not callable(update):
            raise UserError(f"update={update!r} is not a function: pass one that maps a state to the next state.")
        self.calls = 0
        self._update, self._structure = update, structure
        self._is_leaf = structure.is_leaf()

    def __call__(self, vector: Vector) -> list[Tensor]:
        """Applies F.

        Args:
            vector: Leaves of h.

        Returns:
            Leaves of F(h), in the same order.

        Raises:
            UserError: If F returns another structure, other shapes, or leaves that are not floating-point tensors.
        """
        self.calls += 1
        try:
            state = self._update(vector[0] if self._is_leaf else tree_unflatten(list(vector), self._structure))
        except TypeError as error:
            if _raised_by_the_call(error):
                raise UserError(f"The update does not take a state as its only argument: {error}.") from error
            raise
        if self._is_leaf:
            if not continues(vector[0], state):
                self.refuse(vector, [state])
            return [state]
        try:
            leaves: list[Tensor] = self._structure.flatten_up_to(state)
        except ValueError as error:
            raise UserError(
                f"The update turned a state of the structure {_in_one_line(self._structure)} into one of the structure "
                f"{_in_one_line(tree_structure(state))}: it must return the structure that it was given."
            ) from error
        if not all(continues(leaf, following) for leaf, following in zip(vector, leaves, strict=True)):
            self.refuse(vector, leaves)
        return leaves

    def checked(self, vector: Vector) -> list[Tensor]:
        """Applies F, and checks that it returns new tensors.

        Raises:
            UserError: If F changes its argument in place, or returns one of its tensors.
        """
        # New tensor objects, to tell them from tensors that F closes over.
        arguments = [leaf.view_as(leaf) if leaf.requires_grad else leaf.detach() for leaf in vector]
        versions = [leaf._version for leaf in vector if not leaf.is_inference()]
        image = self(arguments)
        if versions != [leaf._version for leaf in vector if not leaf.is_inference()]:
            raise UserError("The update changes its argument in place: it must return a new state.")
        if any(one is other for one, other in zip(arguments, image, strict=True)):
            raise UserError(
                "The update returned a tensor of the state itself: it must return new tensors. A tensor that it never "
                "changes does not belong to the state: let the update close over it."
            )
        return image

    def check_reuse(self, vector: Vector) -> None:
        """Checks, by another application, that F does not write its result into its argument.

        It is called when F(h) is the same tensor as h, as it is for an F that returns a constant or reuses its output.

        Args:
            vector: Leaves of h.

        Raises:
            UserError: If F changes them.
        """
        before = [leaf.detach().clone() for leaf in vector]
        with torch.no_grad():
            self(vector)
        if not all(torch.equal(leaf, one) for leaf, one in zip(vector, before, strict=True)):
            raise UserError(
                "The update writes its result into the same tensor each time, which is then its argument: it must "
                "return a new one."
            )

    @staticmethod
    def refuse(before: Vector, after: Vector) -> None:
        """Raises the error for a result of F that cannot be the next state.

        Args:
            before: Leaves of h.
            after: Leaves of F(h).

        Raises:
            UserError: Always.
        """
        kinds = [", ".join(_kind(leaf) for leaf in leaves) for leaves in (before, after)]
        raise UserError(
            f"The update turned a state of {kinds[0]} into one of {kinds[1]}: it must return dense floating-point "
            "tensors with the shapes and on the device of the state."
        )


def continues(leaf: Tensor, following: object) -> bool:
    """Whether a value can replace a leaf: a dense floating-point tensor of the same shape and device, of any dtype.

    Args:
        leaf: The leaf.
        following: The corresponding value that the update returned.
    """
    return (
        isinstance(following, Tensor)
        and following.shape == leaf.shape
        and following.dtype in FLOATS
        and following.layout is torch.strided
        and following.device == leaf.device
    )


def _kind(leaf: object) -> str:
    if not isinstance(leaf, Tensor):
        return type(leaf).__name__
    words = [str(tuple(leaf.shape)), str(leaf.dtype).removeprefix("torch.")]
    layout = [] if leaf.layout is torch.strided else [str(leaf.layout).removeprefix("torch.")]
    return " ".join([*words, *layout, *([] if leaf.device.type == "cpu" else [str(leaf.device)])])


def _in_one_line(structure: TreeSpec) -> str:
    return " ".join(str(structure).split())


def _raised_by_the_call(error: TypeError) -> bool:
    """Whether the call itself failed, because the update takes other arguments."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_globals["__name__"] in _CALLERS


def precision(vector: Vector) -> float:
    """Relative precision of a computation on some tensors: the coarsest of their dtypes and autocast's.

    Args:
        vector: Tensors on one device.
    """
    dtypes = {leaf.dtype for leaf in vector}
    device = vector[0].device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def outside_autocast(device: str) -> AbstractContextManager[Any]:
    """Disables autocast, which is meant for the update, in a solver's own arithmetic.

    Args:
        device: The type of device.
    """
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
