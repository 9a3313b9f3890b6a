"""Schedules checks that are too expensive for every solve."""

import threading

from rbp_lightning.reporting import Place

FIRST_CHECKS = 4
"""Number of first solves of a line of the user's code that are checked."""

CHECK_EVERY = 97
"""Interval of checks after the first solves."""


class SpotChecks:
    """Selects solves to check: the first ones of each line of the user's code, and then about one in a hundred.

    Attributes:
        found: The lines where a check has failed.

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
            The number of the solve, if it is to be checked; ``None`` otherwise.
        """
        with self._lock:
            count = self._counts[place] = self._counts.get(place, 0) + 1
        return count if count <= FIRST_CHECKS or count % CHECK_EVERY == 0 else None
