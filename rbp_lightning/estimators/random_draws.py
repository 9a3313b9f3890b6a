"""Detects updates that draw random numbers, which have no fixed point."""

import pickle
import random
import sys
from typing import Any

from torch import Tensor
from torch.utils._pytree import tree_leaves

from rbp_lightning.agreement import anywhere
from rbp_lightning.estimators.spot_checks import SpotChecks
from rbp_lightning.pytree import State
from rbp_lightning.reporting import Place
from rbp_lightning.rng_states import get_rng_states
from rbp_lightning.solvers import Solve
from rbp_lightning.state_function import Update

WATCHED = (2, 3)
"""Watched applications of the update. Not the first: an update that seeds a generator only advances it there."""


class DrawWatch:
    """Applies an update, and detects whether it advances a global random generator of PyTorch, Python or NumPy.

    Private generators are not detected. A random update can seem to converge, for example if the same dropout mask
    happens to be drawn twice.

    Args:
        update: The function F.

    Attributes:
        draws: Whether every watched application has drawn random numbers.

    Example:
        >>> watch = DrawWatch(lambda h: h + torch.rand(()))
        >>> for _ in range(3):
        ...     state = watch(torch.zeros(()))
        >>> watch.draws
        True
    """

    def __init__(self, update: Update) -> None:
        self._update = update
        self._calls = 0
        self._moved: list[bool] = []

    @property
    def draws(self) -> bool:
        """Whether every watched application has drawn random numbers."""
        return bool(self._moved) and all(self._moved)

    def __call__(self, state: State) -> State:
        """Applies the update."""
        self._calls += 1
        if self._calls not in WATCHED:
            return self._update(state)
        before = _generators(state)
        image = self._update(state)
        self._moved.append(before != _generators(state))
        return image


class RandomnessCheck:
    """Checks in some solves whether the update is random.

    Args:
        update: The function F.
        place: The line that called the solve.
        taped: Whether gradients are enabled; training, with dropout, and evaluation are checked separately.
        tol: The solver's tolerance; with 0, no fixed point is needed and nothing is checked.

    Attributes:
        due: Whether this solve is checked.
        update: The update to solve with.
    """

    def __init__(self, update: Update, place: Place, taped: bool, tol: float) -> None:
        self._place, self._tol = place, tol
        self._checks = _taped_checks if taped else _untaped_checks
        self.due = self._checks.next(place) is not None or place in self._checks.found
        self._watch = DrawWatch(update) if self.due and tol > 0 and callable(update) else None
        self.update = self._watch or update

    def is_random(self, solve: Solve) -> bool:
        """Whether the update is random; applies F again if it has drawn random numbers.

        Args:
            solve: The finished solve.
        """
        # The drawn numbers may not affect F, or another thread may have drawn them.
        if self._watch is None or not anywhere(self._watch.draws) or not solve.is_stochastic(DRAWS, self._tol):
            return False
        self._checks.found.add(self._place)
        return True


DRAWS = 8
"""Number of applications that decide whether the random numbers affect the update."""

_taped_checks, _untaped_checks = SpotChecks(), SpotChecks()


def _generators(state: State) -> list[Any]:
    """The states of the global random generators."""
    found: list[Any] = [random.getstate()]
    if (numpy := sys.modules.get("numpy")) is not None:
        found.append(pickle.dumps(numpy.random.get_state(legacy=False)))
    devices = [leaf.device for leaf in tree_leaves(state) if isinstance(leaf, Tensor)]
    return found + [one.numpy().tobytes() for one in get_rng_states(devices).values()]
