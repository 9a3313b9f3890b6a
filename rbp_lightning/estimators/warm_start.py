"""Starting a solve where the last one ended."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map, tree_structure

from rbp_lightning.agreement import everywhere
from rbp_lightning.errors import UserError
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear.base import LinearSolution
from rbp_lightning.pytree import FLOATS, State, Vector
from rbp_lightning.status import Status


class WarmStart:
    """The fixed point and the adjoint of the last solve, as the start of the next.

    It pays where one solve is much like the last, as in full-batch training, where only the parameters moved a little.
    Whoever owns it decides that: hand one ``WarmStart`` to solves of one problem alone, and none to others.

    A state of another structure or shape is not used, and neither are the results of solves that
    diverged or met NaN.

    Example:
        >>> estimator, warm_start = NeumannRBP(solver=Picard(check_every=1)), WarmStart()
        >>> [estimator(torch.cos, torch.zeros(()), warm_start=warm_start).steps for _ in range(2)]
        [37, 2]
    """

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forgets the last solve."""
        self._state: State | None = None
        self._adjoint: list[Tensor] | None = None

    def state_like(self, initial_state: State) -> State:
        """Returns the last fixed point if it can replace an initial state, and that state if not.

        Args:
            initial_state: Where the solve would start otherwise.
        """
        return _moved(self._state, initial_state) if _interchangeable(self._state, initial_state) else initial_state

    def adjoint_like(self, gradient: Vector) -> Vector | None:
        """Returns the leaves of the last adjoint if it can start the solution for a gradient.

        Args:
            gradient: Leaves of the gradient, scaled as the last one was.
        """
        leaves = list(gradient)
        return _moved(self._adjoint, leaves) if everywhere(_interchangeable(self._adjoint, leaves)) else None

    def keep_state(self, fixed_point: FixedPoint) -> None:
        """Keeps a fixed point, or forgets the last solve if this one went wrong.

        Args:
            fixed_point: The result of the solve.
        """
        if fixed_point.status not in (Status.DIVERGED, Status.NAN):
            # A copy, since the owner may change the result in place; and one that a later training can save.
            with torch.inference_mode(False):
                self._state = tree_map(lambda leaf: leaf.detach().clone(), fixed_point.state)
        else:
            self.clear()

    def keep_adjoint(self, solution: LinearSolution) -> None:
        """Keeps an adjoint, if it is nearer to the solution than 0 is.

        Args:
            solution: How it was solved for.
        """
        good = everywhere((solution.residual <= 1).all())  # NaN is not
        self._adjoint = [leaf.detach() for leaf in solution.vector] if good else None

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs to continue as if there had been no break."""
        return {"state": self._state, "adjoint": self._adjoint}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what ``state_dict`` returned.

        Raises:
            UserError: If it is something else.
        """
        if not isinstance(state_dict, dict) or not {"state", "adjoint"} <= state_dict.keys():
            raise UserError("WarmStart: state_dict is no dict with state and adjoint: pass what state_dict() returned.")
        self._state, self._adjoint = state_dict["state"], state_dict["adjoint"]


def _interchangeable(kept: State | None, wanted: State) -> bool:
    if kept is None:
        return False
    structure = tree_structure(wanted)
    try:
        pairs = list(zip(structure.flatten_up_to(kept), structure.flatten_up_to(wanted), strict=True))
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


def _moved(kept: State, wanted: State) -> State:
    # A checkpoint is loaded to the CPU, and autocast changes the dtype of a state.
    return tree_map(lambda other, one: one.to(other.device, other.dtype), wanted, kept)
