"""The warm starts of a layer, stored in its ``state_dict``."""

from typing import Any

from torch import nn

from rbp_lightning.errors import UserError
from rbp_lightning.estimators import WarmStart


class KeptSolves(nn.Module):
    """The warm starts of a layer, one for training and one for evaluation, as part of its ``state_dict``.

    Example:
        >>> warm_starts = KeptSolves()
        >>> warm_starts.of_mode(training=True) is warm_starts.of_mode(training=False)
        False
    """

    def __init__(self) -> None:
        super().__init__()
        self._warm_starts = {True: WarmStart(), False: WarmStart()}

    def of_mode(self, training: bool) -> WarmStart:
        """The warm start of a mode.

        Args:
            training: Whether it is training mode.
        """
        return self._warm_starts[training]

    def clear(self) -> None:
        """Forgets the last solves."""
        for warm_start in self._warm_starts.values():
            warm_start.clear()

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        """Starts without warm starts if none were saved."""
        if f"{prefix}_extra_state" not in state_dict:
            self.clear()
        else:
            super()._load_from_state_dict(state_dict, prefix, *arguments)

    def get_extra_state(self) -> dict[str, Any]:
        """The warm starts, for the ``state_dict``."""
        return {"training": self._warm_starts[True].state_dict(), "evaluation": self._warm_starts[False].state_dict()}

    def set_extra_state(self, state: Any) -> None:
        """Restores the warm starts of a ``state_dict``.

        Raises:
            UserError: If ``state`` is not what ``get_extra_state`` returned.
        """
        if not isinstance(state, dict) or not {"training", "evaluation"} <= state.keys():
            raise UserError(
                "KeptSolves: its state is not a dict with training and evaluation: load the state_dict of a layer."
            )
        self._warm_starts[True].load_state_dict(state["training"])
        self._warm_starts[False].load_state_dict(state["evaluation"])
