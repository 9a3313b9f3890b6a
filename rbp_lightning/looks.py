"""When an iteration looks at a residual that is on the device."""

import math

import torch
from torch import Tensor


class Looks:
    """Says at which steps an iteration reads its residual off the device, each of which waits for it.

    That is every so many steps, and earlier where the decline of the residual so far promises that it will have
    converged by then; from six on, the decline is first looked at after a third of so many. Beyond one in so many steps
    there are at most three looks, two of them where a promise was broken.

    Args:
        every: Steps between two looks.
        tol: Residual at which a sample has converged; 0 asks for no look at all.

    Example:
        >>> looks = Looks(every=10, tol=1e-4)
        >>> for step in range(1, 100):
        ...     if looks.due(step) and looks.finished(step, torch.tensor(0.5) ** step):
        ...         break
        >>> step
        14
    """

    def __init__(self, every: int, tol: float) -> None:
        self.every = every
        self.tol = tol
        self._first = self._next = every // 3 if tol > 0 and every >= 6 else every
        self._count = 0
        self._before: tuple[int, Tensor] | None = None

    def due(self, step: int) -> bool:
        """Whether the residual of this step, counted from 1, is wanted."""
        return step in (1, self._next)

    def finished(self, step: int, residual: Tensor) -> bool:
        """Whether every sample has converged or is no longer finite.

        Args:
            step: A step that was due.
            residual: Its residual, one value for each sample.
        """
        looked = step == self._next
        rounds = (step - self._first) // self.every + 1
        if looked:
            self._next = self._first + rounds * self.every
        if self.tol == 0:
            return False
        worst = torch.where(residual.isfinite(), residual, 0).max()
        before, self._before = self._before, (step, worst)
        if not looked:
            return False
        left = _steps_left(self._before, before, self.tol, growing_goes_on=step < self.every)
        self._count += 1
        if left > 0 and self._count <= rounds + 1:
            promised = step + math.ceil(min(left, self.every))
            if promised < self.every:  # the first steps often decline faster than the later ones
                promised = min(step + math.ceil(1.25 * left), self.every)
            self._next = promised
        return left == 0


def _steps_left(now: tuple[int, Tensor], before: tuple[int, Tensor] | None, tol: float, growing_goes_on: bool) -> float:
    """How many more steps it will take if the largest residual declines as it did; 0 if none is left.

    Args:
        now: A step and its largest residual.
        before: An earlier step and its own; ``None`` if there is none.
        tol: What it is to decline to.
        growing_goes_on: Whether a residual within the tolerance is not believed while it grows, as one does that
            starts small.
    """
    step, worst = now
    if before is None:
        return float(torch.where(worst <= tol, 0, math.inf))
    decline = (before[1] / worst).log() / (step - before[0])
    left = torch.where(decline > 0, ((worst / tol).log() / decline).clamp_min(1), math.inf)
    done = worst <= tol
    if growing_goes_on:
        done = done & ((decline > 0) | (worst == 0))
    return float(torch.where(done, 0, left))
