"""Starts a solve from the results of the last one."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_structure

from rbp_lightning.agreement import everywhere
from rbp_lightning.errors import UserError
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear.base import LinearSolution
from rbp_lightning.pytree import FLOATS, State, Vector, divide, norm, scale
from rbp_lightning.status import Status


class WarmStart:
    """The fixed point and the adjoint of the last solve, from which the next solve starts.

    It saves steps if successive solves are similar, as in full-batch training, where the parameters change only a
    little. Use one ``WarmStart`` for the solves of one problem only.

    A state with another structure or shape is not used, and neither are results of solves that diverged or met NaN.

    Example:
        >>> estimator, warm_start = NeumannRBP(solver=Picard(check_every=1)), WarmStart()
        >>> [estimator(torch.cos, torch.zeros(()), warm_start=warm_start).steps for _ in range(2)]
        [37, 2]
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Discards the results of the last solve."""
        self._state: State | None = None
        self._adjoint: list[Tensor] | None = None

    def state_like(self, initial_state: State) -> State:
        """Returns the last fixed point if it is compatible with an initial state, and that state otherwise.

        Args:
            initial_state: The initial state without a warm start.
        """
        return _like(self._state, initial_state) if _compatible(self._state, initial_state) else initial_state

    def adjoint_like(self, gradient: Vector) -> Vector | None:
        """Returns the leaves of the last adjoint times the norm of a gradient, or ``None`` if they are incompatible.

        Args:
            gradient: Leaves of the gradient.
        """
        leaves = list(gradient)
        if not everywhere(_compatible(self._adjoint, leaves)):
            return None
        return scale(norm(leaves, batch_dims=0), _like(self._adjoint, leaves))

    def keep_state(self, fixed_point: FixedPoint) -> None:
        """Stores a fixed point, or discards the last one if the solve diverged.

        Args:
            fixed_point: The result of the solve.
        """
        if fixed_point.status not in (Status.DIVERGED, Status.NAN):
            # A copy, since the caller may change the result in place; autograd cannot save inference tensors later.
            with torch.inference_mode(False):
                self._state = tree_map(lambda leaf: leaf.detach().clone(), fixed_point.state)
        else:
            self.clear()

    def keep_adjoint(self, solution: LinearSolution, gradient: Vector) -> None:
        """Stores an adjoint, divided by its gradient's norm, if its relative residual is at most 1, that of z = 0.

        Args:
            solution: The adjoint solution.
            gradient: Leaves of the gradient.
        """
        good = everywhere((solution.residual <= 1).all())  # False for NaN
        size = norm(gradient, batch_dims=0)
        self._adjoint = [divide(leaf.detach(), size) for leaf in solution.vector] if good else None

    def state_dict(self) -> dict[str, Any]:
        """The results of the last solve, for a checkpoint."""
        return {"state": self._state, "adjoint": self._adjoint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned.

        Raises:
            UserError: If ``state_dict`` is something else.
        """
        if not isinstance(state_dict, dict) or not {"state", "adjoint"} <= state_dict.keys():
            raise UserError(
                "WarmStart: state_dict is not a dict with state and adjoint: pass a result of state_dict()."
            )
        self._state, self._adjoint = state_dict["state"], state_dict["adjoint"]


def _compatible(stored: State | None, wanted: State) -> bool:
    if stored is None:
        return False
    structure = tree_structure(wanted)
    try:
        pairs = list(zip(structure.flatten_up_to(stored), structure.flatten_up_to(wanted), strict=True))
    except ValueError:
        return False
    return all(
        isinstance(one, Tensor)
        and isinstance(other, Tensor)
        and one.shape == other.shape
        and one.dtype in FLOATS  # a checkpoint may hold anything
        and one.layout is torch.strided
        for one, other in pairs
    )


def _like(stored: State, wanted: State) -> State:
    # A checkpoint is loaded to the CPU, and autocast changes the dtype of a state.
    return tree_map(lambda other, one: one.to(other.device, other.dtype), wanted, stored)
