"""An update as a map of lists of leaves."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_structure, tree_unflatten

from rbp_lightning.errors import UserError
from rbp_lightning.pytree import FLOATS, State, Vector

Update: TypeAlias = Callable[[State], State]
"""The map F(h) whose fixed point is wanted; inputs and parameters are what it closes over."""

_CALLERS = (
    __name__,
    "rbp_lightning.estimators.random_draws",
    "rbp_lightning.estimators.transforms",
    "rbp_lightning.nn.same_draws",
)
"""The modules that call an update."""


class StateFunction:
    """F on the leaves of a state. What F returns is paired with its argument by structure, not by position.

    Args:
        update: The map F.
        structure: Structure of the state.

    Raises:
        UserError: If ``update`` is no function.

    Attributes:
        calls: How often F was applied.

    Example:
        >>> from torch.utils._pytree import tree_flatten
        >>> leaves, structure = tree_flatten({"a": torch.zeros(1), "b": torch.ones(1)})
        >>> function = StateFunction(lambda h: {"b": h["b"] + 1, "a": h["a"]}, structure)
        >>> function(leaves), function.calls
        ([tensor([0.]), tensor([2.])], 1)
    """

    def __init__(self, update: Update, structure: TreeSpec) -> None:
        if not callable(update):
            raise UserError(f"update={update!r} is no function: pass one from a state to the next state.")
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
            UserError: If F returns another structure, other shapes or something that is no floating-point tensor.
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
        """Applies F for the first time, and checks that it returns new tensors.

        Raises:
            UserError: If F changes its argument in place or returns a tensor of it.
        """
        # New objects, so that a tensor that F closes over is not taken for its argument.
        arguments = [leaf.view_as(leaf) if leaf.requires_grad else leaf.detach() for leaf in vector]
        versions = [leaf._version for leaf in vector if not leaf.is_inference()]
        image = self(arguments)
        if versions != [leaf._version for leaf in vector if not leaf.is_inference()]:
            raise UserError("The update changes its argument in place: it must return a new state.")
        if any(one is other for one, other in zip(arguments, image, strict=True)):
            raise UserError(
                "The update returned a tensor of the state itself: it must return new ones, and what it does not "
                "change is no state but something to close over."
            )
        return image

    def check_reuse(self, vector: Vector) -> None:
        """Refuses an F that writes F(h) into h, once it was seen to return it; applies it once more.

        A constant that F closes over is returned each time as well, and does not change.

        Args:
            vector: Leaves of h.

        Raises:
            UserError: If it does.
        """
        before = [leaf.detach().clone() for leaf in vector]
        with torch.no_grad():
            self(vector)
        if not all(torch.equal(leaf, one) for leaf, one in zip(vector, before, strict=True)):
            raise UserError(
                "The update writes its result into one tensor each time, which by then is its argument: it must return "
                "a new one."
            )

    @staticmethod
    def refuse(before: Vector, after: Vector) -> None:
        """Refuses what F returned.

        Args:
            before: Leaves of h.
            after: What F made of them.

        Raises:
            UserError: Always.
        """
        kinds = [", ".join(_kind(leaf) for leaf in leaves) for leaves in (before, after)]
        raise UserError(
            f"The update turned a state of {kinds[0]} into one of {kinds[1]}: it must return what it was given, one "
            "step later, in dense floating-point tensors."
        )


def continues(leaf: Tensor, following: object) -> bool:
    """Whether something can be the next value of a leaf: of its shape, on its device and of any floating-point dtype.

    Args:
        leaf: The leaf.
        following: What an update made of it.
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
    """Whether an update was not entered at all, as it takes other arguments."""
    place = error.__traceback__
    while place is not None and place.tb_next is not None:
        place = place.tb_next
    return place is not None and place.tb_frame.f_globals["__name__"] in _CALLERS


def precision(vector: Vector) -> float:
    """Relative precision of a computation on some tensors: that of the coarsest dtype among them and autocast's.

    Args:
        vector: Tensors on one device.
    """
    dtypes = {leaf.dtype for leaf in vector}
    device = vector[0].device.type
    if torch.is_autocast_enabled(device):
        dtypes.add(torch.get_autocast_dtype(device))
    return max(torch.finfo(dtype).eps for dtype in dtypes)


def outside_autocast(device: str) -> AbstractContextManager[Any]:
    """Keeps autocast, which is for the update, from a solver's arithmetic.

    Args:
        device: A device's type.
    """
    return torch.autocast(device, enabled=False) if torch.is_autocast_enabled(device) else nullcontext()
