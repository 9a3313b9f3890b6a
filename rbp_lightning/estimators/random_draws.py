"""Finding updates that draw random numbers, which have no fixed point."""

import pickle
import random
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

from rbp_lightning.agreement import anywhere
from rbp_lightning.estimators.spot_checks import SpotChecks
from rbp_lightning.pytree import State
from rbp_lightning.reporting import Place
from rbp_lightning.solvers import Solve
from rbp_lightning.state_function import Update

WATCHED = (2, 3)
"""Applications of the update that are watched: one that seeds a generator each time moves it in the first alone."""


class DrawWatch:
    """Applies an update, and looks whether a global random generator moves: PyTorch's, Python's or NumPy's.

    A generator of the update's own is not seen. A random update can pass for converged, as with a dropout mask that
    happens to be drawn twice.

    Args:
        update: The map F.

    Attributes:
        draws: Whether each application that was watched has drawn.

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
        """Whether each application that was watched has drawn."""
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
    """Looks now and then whether the update of a solve is random.

    Args:
        update: The map F.
        place: The line that called the solve.
        taped: Whether gradients are enabled: a module that draws dropout masks in training does not in an evaluation.
        tol: The solver's tolerance; a number of steps that was asked for needs no fixed point.

    Attributes:
        due: Whether this solve is one of those that are checked.
        update: F, to be solved with.
    """

    def __init__(self, update: Update, place: Place, taped: bool, tol: float) -> None:
        self._place, self._tol = place, tol
        self._checks = _taped_checks if taped else _untaped_checks
        self.due = self._checks.next(place) is not None or place in self._checks.found
        self._watch = DrawWatch(update) if self.due and tol > 0 and callable(update) else None
        self.update = self._watch or update

    def is_random(self, solve: Solve) -> bool:
        """Whether it is, once the solve has ended; applies F again if it has drawn.

        Args:
            solve: The solve.
        """
        # A draw need not matter, and another thread may have made it.
        if self._watch is None or not anywhere(self._watch.draws) or not solve.is_stochastic(DRAWS, self._tol):
            return False
        self._checks.found.add(self._place)
        return True


DRAWS = 8
"""How often an update that draws random numbers is applied again, to see whether they matter."""

_taped_checks, _untaped_checks = SpotChecks(), SpotChecks()


def _generators(state: State) -> list[Any]:
    """The states of the generators that an update may draw from."""
    found: list[Any] = [random.getstate(), torch.get_rng_state().numpy().tobytes()]
    if (numpy := sys.modules.get("numpy")) is not None:
        found.append(pickle.dumps(numpy.random.get_state(legacy=False)))
    devices = {leaf.device for leaf in tree_leaves(state) if isinstance(leaf, Tensor) and leaf.is_cuda}
    read: Callable[[torch.device], Tensor] = torch.cuda.get_rng_state
    return found + [read(device).numpy().tobytes() for device in sorted(devices, key=str)]
