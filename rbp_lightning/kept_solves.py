"""The last solves of a layer, kept with its parameters."""

from typing import Any

from torch import nn

from rbp_lightning.errors import UserError
from rbp_lightning.estimators import WarmStart


class KeptSolves(nn.Module):
    """The warm starts of a layer, part of its ``state_dict``; trainings and evaluations are kept apart.

    Example:
        >>> kept = KeptSolves()
        >>> kept.of_mode(training=True) is kept.of_mode(training=False)
        False
    """

    def __init__(self) -> None:
        super().__init__()
        self._warm_starts = {True: WarmStart(), False: WarmStart()}

    def of_mode(self, training: bool) -> WarmStart:
        """The warm start of trainings, or of evaluations.

        Args:
            training: Which one.
        """
        return self._warm_starts[training]

    def clear(self) -> None:
        """Forgets the last solves."""
        for warm_start in self._warm_starts.values():
            warm_start.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Loads weights that were saved without warm starts as well, and begins without one then."""
        if f"{prefix}_extra_state" not in state_dict:
            self.clear()
        else:
            super()._load_from_state_dict(state_dict, prefix, *arguments)

    def get_extra_state(self) -> dict[str, Any]:
        """What the ``state_dict`` holds of it."""
        return {"training": self._warm_starts[True].state_dict(), "evaluation": self._warm_starts[False].state_dict()}

    def set_extra_state(self, state: Any) -> None:
        """Takes what the ``state_dict`` holds.

        Raises:
            UserError: If it is something else.
        """
        if not isinstance(state, dict) or not {"training", "evaluation"} <= state.keys():
            raise UserError("KeptSolves: its state is no dict with training and evaluation: load a layer's own.")
        self._warm_starts[True].load_state_dict(state["training"])
        self._warm_starts[False].load_state_dict(state["evaluation"])
