"""When an iteration reads its residual off the device, and when that tells it to stop."""

import math

import torch
from torch import Tensor

from rbp_lightning.agreement import largest as largest_anywhere

STALL_STEPS = 30
"""Steps without a new minimum after which a residual at the level of rounding has stalled."""

STALL_CHECKS = 3
"""The same in checks."""

STALL_SHARE = 10
"""One in so many of the steps taken so far, where that is more than ``STALL_STEPS``."""

HIGHEST_FLOOR = 0.05
"""A residual above it is never put down to rounding."""

FALLING = 0.7
"""A residual that falls by this factor in a step is not stalled, however small it is."""

PROGRESS = 0.95
"""A residual below this share of the least one so far is a new minimum."""


def rounding_floor(epsilon: float) -> float:
    """Relative residual up to which rounding can keep an iteration from converging.

    The level depends on the spectral radius: for h <- tanh(h W + x) with 256 units it is 4 epsilon at 0.93 and
    21 epsilon at 0.99. A residual above 5% is never put down to rounding.

    Args:
        epsilon: Relative precision of the computation.
    """
    return min(64 * epsilon, HIGHEST_FLOOR)


class CheckSchedule:
    """Says at which steps an iteration checks for convergence; each check waits for the device.

    Checks come at every multiple of ``check_every``. From six on, the first check comes after a third of that, and
    where the decline of the residual predicts when it will reach the tolerance, the next check comes then, at most
    twice ``check_every`` later. Beyond one in ``check_every`` steps there are at most three checks, of which two found
    a prediction wrong.

    Args:
        check_every: Steps between two checks.
        tol: Residual at which a sample has converged; 0 runs a fixed number of steps, and checks, at intervals that
            double, only whether the iterates are still finite.
        epsilon: Relative precision of the computation.

    Attributes:
        next_check: The step of the next check.
        steps_left: How many more steps it takes if the residual declines as it did between the last two checks;
            infinite where it does not decline.
        largest: The largest residual of the last check, not finite if any is; of all processes that share the solve.
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
        """Whether the residual of this step, counted from 1, is wanted: of the first one, and of ``next_check``."""
        return step == 1 or step == self.next_check

    def is_finished(self, step: int, residual: Tensor) -> bool:
        """Whether every sample has converged, or stalled at rounding.

        The residual of the first step is read along with the next one, in one transfer.

        Args:
            step: A step to check at.
            residual: Its residual, one value per sample. Where one is not finite, ``largest`` is not either, and the
                answer is no.
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
        """What ``is_finished`` says of a largest residual that has been read.

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
        # What has taken long may well decline slowly: at a rate of 0.999 a residual loses 3% in 30 steps.
        window = max(STALL_STEPS, step // STALL_SHARE)
        since = step - self._least_at[0] >= window and self._checks - self._least_at[1] >= STALL_CHECKS
        self.stalled = since and largest <= self._floor
        return self.stalled

    def _steps_left(self, step: int, largest: float) -> float:
        """How many more steps it takes if the residual declines as it did; 0 if none."""
        before, self._before = self._before, (step, largest)
        if largest == 0:
            return 0
        ratio = 0.0 if before is None else before[1] / largest
        decline = math.log(ratio) / (step - before[0]) if before is not None and 1 < ratio < math.inf else 0.0
        # A residual that starts small may yet grow.
        if largest <= self.tol and (decline > 0 or before is None or step >= self.check_every):
            return 0
        return math.log(largest / self.tol) / decline if decline > 0 else math.inf
