"""Decides when an iteration checks its residual, and when it stops."""

import math

import torch
from torch import Tensor

from rbp_lightning.agreement import largest as largest_anywhere

STALL_STEPS = 30
"""Number of steps without a new minimum after which a residual at the level of rounding has stalled."""

STALL_CHECKS = 3
"""Number of convergence checks without a new minimum that are needed as well."""

STALL_SHARE = 10
"""After many steps, the stall window is the number of steps so far divided by this, if that is longer."""

HIGHEST_FLOOR = 0.05
"""A residual above this is never attributed to rounding."""

FALLING = 0.7
"""A residual that falls by this factor in one step has not stalled, however small it is."""

PROGRESS = 0.95
"""A residual below this factor times the smallest one so far is a new minimum."""


def rounding_floor(epsilon: float) -> float:
    """The relative residual below which rounding can prevent further convergence.

    The level depends on the spectral radius: for h <- tanh(h W + x) with 256 units it is 4 epsilon at 0.93 and
    21 epsilon at 0.99. A residual above 5% is never attributed to rounding.

    Args:
        epsilon: Relative precision of the computation.
    """
    return min(64 * epsilon, HIGHEST_FLOOR)


class CheckSchedule:
    """Schedules the convergence checks of an iteration; each check synchronises with the device.

    Checks come at every multiple of ``check_every``. If ``check_every`` is at least 6, the first check comes after a
    third of that, and a check comes when the residual is predicted to reach the tolerance from its decline, at most
    ``2 * check_every`` steps after the last one. Wrong predictions cost at most two additional checks, so that there
    are at most three more than one per ``check_every`` steps.

    Args:
        check_every: Steps between two checks.
        tol: Residual at which a sample has converged; 0 runs a fixed number of steps, and checks only, at intervals
            that double, whether the iterates are finite.
        epsilon: Relative precision of the computation.

    Attributes:
        next_check: The step of the next check.
        steps_left: Predicted number of remaining steps, from the decline of the residual between the last two checks;
            infinite if it did not decline.
        largest: The largest residual at the last check, over all processes that share the solve; not finite if any
            residual is not.
        stalled: Whether the residual has stopped falling at a level that rounding explains.

    Example:
        >>> schedule = CheckSchedule(check_every=10, tol=1e-4)
        >>> for step in range(1, 100):
        ...     if schedule.should_check(step) and schedule.is_finished(step, torch.tensor(0.5) ** step):
        ...         break
        >>> step
        14
    """

    def __init__(self, check_every: int, tol: float, epsilon: float = 0.0) -> None:
        self.check_every = check_every
        self.tol = tol
        self.stalled = False
        self._floor = rounding_floor(epsilon)
        self._predicts = tol > 0 and check_every >= 6
        self.next_check = check_every // 3 if self._predicts else check_every
        self.steps_left = math.inf
        self.largest = 0.0
        self._checks = 0
        self._first: Tensor | None = None
        self._before: tuple[int, float] | None = None
        self._least = math.inf
        self._least_at = (0, 0)

    def should_check(self, step: int) -> bool:
        """Whether the residual of this step, counted from 1, is needed: at the first step and at ``next_check``."""
        return step == 1 or step == self.next_check

    def is_finished(self, step: int, residual: Tensor) -> bool:
        """Whether every sample has converged, or stalled at the level of rounding.

        The residual of the first step is transferred together with that of the next check.

        Args:
            step: A step for which ``should_check`` is true.
            residual: Its residual, one value per sample. If any is not finite, ``largest`` is not finite and the result
                is ``False``.
        """
        largest = residual.max()
        if step != self.next_check:
            self._first = largest
            return False
        if self._first is None:
            self.largest = float(largest_anywhere(largest))
        else:
            first, self.largest = largest_anywhere(torch.stack([self._first, largest])).tolist()
            self._first, self._before = None, (1, first)
        return self.decide(step, self.largest)

    def decide(self, step: int, largest: float) -> bool:
        """``is_finished`` for a largest residual that was already read from the device.

        Args:
            step: The step.
            largest: Its largest residual.
        """
        if self.tol == 0:
            self.next_check = 2 * step
            return False
        self._checks += 1
        following = (step // self.check_every + 1) * self.check_every
        left = self.steps_left = self._steps_left(step, largest)
        trusted = self._predicts and left < math.inf and self._checks <= step // self.check_every + 2
        self.next_check = step + math.ceil(min(left, 2 * self.check_every)) if trusted else following
        return left == 0 or self._has_stalled(step, largest)

    def _has_stalled(self, step: int, largest: float) -> bool:
        if largest < PROGRESS * self._least:
            self._least, self._least_at = largest, (step, self._checks)
        # A long iteration may decline slowly: at a rate of 0.999 a residual loses only 3% in 30 steps.
        window = max(STALL_STEPS, step // STALL_SHARE)
        since = step - self._least_at[0] >= window and self._checks - self._least_at[1] >= STALL_CHECKS
        self.stalled = since and largest <= self._floor
        return self.stalled

    def _steps_left(self, step: int, largest: float) -> float:
        """Predicted number of remaining steps; 0 if the residual has converged."""
        before, self._before = self._before, (step, largest)
        if largest == 0:
            return 0
        ratio = 0.0 if before is None else before[1] / largest
        decline = math.log(ratio) / (step - before[0]) if before is not None and 1 < ratio < math.inf else 0.0
        # A residual that is small at the start may still grow.
        if largest <= self.tol and (decline > 0 or before is None or step >= self.check_every):
            return 0
        return math.log(largest / self.tol) / decline if decline > 0 else math.inf
