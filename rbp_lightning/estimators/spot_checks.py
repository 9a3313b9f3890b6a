"""Checks that cost too much for every solve."""

import threading

from rbp_lightning.reporting import Place

FIRST_CHECKS = 4
"""The first solves of a line of the user's code are checked."""

CHECK_EVERY = 97
"""After those, one in so many is."""


class SpotChecks:
    """Chooses the solves of each line of the user's code that are checked: the first ones, and one in about a hundred.

    Attributes:
        found: The lines where a check has found something.

    Example:
        >>> checks, place = SpotChecks(), Place("train.py", 12)
        >>> [checks.next(place) for _ in range(6)]
        [1, 2, 3, 4, None, None]
    """

    def __init__(self) -> None:
        self.found: set[Place] = set()
        self._counts: dict[Place, int] = {}
        self._lock = threading.Lock()

    def next(self, place: Place) -> int | None:
        """Counts a solve.

        Args:
            place: The line that called it.

        Returns:
            Its number, if it is to be checked.
        """
        with self._lock:
            count = self._counts[place] = self._counts.get(place, 0) + 1
        return count if count <= FIRST_CHECKS or count % CHECK_EVERY == 0 else None
