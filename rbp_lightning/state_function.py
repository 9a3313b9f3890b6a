"""An update as a map of lists of leaves."""

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor
from torch.utils._pytree import TreeSpec, tree_structure, tree_unflatten

from rbp_lightning.errors import UserError
from rbp_lightning.pytree import State, Vector

Update: TypeAlias = Callable[[State], State]
"""The map F(h) whose fixed point is wanted; inputs and parameters are what it closes over."""


class StateFunction:
    """F on the leaves of a state. What F returns is paired with its argument by structure, not by position.

    Args:
        update: The map F.
        structure: Structure of the state.

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
            UserError: If F returns another structure, other shapes or something that is no tensor.
        """
        self.calls += 1
        if self._is_leaf:
            image = self._update(vector[0])
            if not isinstance(image, Tensor) or image.shape != vector[0].shape:
                self.refuse(vector, [image])
            return [image]
        state = self._update(tree_unflatten(list(vector), self._structure))
        try:
            leaves: list[Tensor] = self._structure.flatten_up_to(state)
        except ValueError as error:
            raise UserError(
                f"The update turned a state of the structure {self._structure} into one of the structure "
                f"{tree_structure(state)}: it must return the structure that it was given."
            ) from error
        pairs = zip(leaves, vector, strict=True)
        if not all(isinstance(leaf, Tensor) and leaf.shape == other.shape for leaf, other in pairs):
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

    @staticmethod
    def refuse(before: Vector, after: Vector) -> None:
        """Refuses what F returned.

        Args:
            before: Leaves of h.
            after: What F made of them.

        Raises:
            UserError: Always.
        """
        shapes = [[tuple(getattr(leaf, "shape", ())) for leaf in leaves] for leaves in (before, after)]
        raise UserError(
            f"The update turned a state of shapes {shapes[0]} into one of shapes {shapes[1]} and types "
            f"{[type(leaf).__name__ for leaf in after]}: it must return what it was given, one step later."
        )


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
