"""When an iteration looks at a residual that is on the device."""

import math

import torch
from torch import Tensor


class Looks:
    """Says at which steps an iteration reads its residual off the device, each of which waits for it.

    That is at the next multiple of so many steps. From six on, the first look comes after a third of them, and where
    the decline of the residual promises that it will have converged, the next look comes a little after that, at most
    twice so many steps later. Beyond one in so many steps there are at most three looks, of which two found a promise
    broken.

    Args:
        every: Steps between two looks.
        tol: Residual at which a sample has converged; 0 asks for nothing to be read.

    Attributes:
        all_finite: Whether no look has found a sample that failed; the first one that does reads twice.

    Example:
        >>> looks = Looks(every=10, tol=1e-4)
        >>> for step in range(1, 100):
        ...     if looks.due(step) and looks.finished(step, torch.tensor(0.5) ** step):
        ...         break
        >>> step
        15
    """

    def __init__(self, every: int, tol: float) -> None:
        self.every = every
        self.tol = tol
        self._next, self._longest = (every // 3, 2 * every) if tol > 0 and every >= 6 else (every, every)
        self.all_finite = True
        self._count = 0
        self._first: Tensor | None = None
        self._before: tuple[int, float] | None = None

    def due(self, step: int) -> bool:
        """Whether the residual of this step, counted from 1, is wanted."""
        return step in (1, self._next)

    def finished(self, step: int, residual: Tensor) -> bool:
        """Whether every sample has converged or is no longer finite.

        Args:
            step: A step that was due.
            residual: Its residual, one value for each sample.
        """
        following = (step // self.every + 1) * self.every
        if self.tol == 0:
            self._next = following
            return False
        if step < self._next:
            self._first = residual.max()
            return False
        left = self._steps_left(step, self._read(residual))
        # Declines slow down, in the first steps more than later: with a little to spare, fewer looks come too early.
        early = step + left < self.every
        promised = step + math.ceil(min((1.25 if early else 1.15) * left, self._longest))
        self._count += 1
        believed = left < math.inf and self._count <= step // self.every + 2
        self._next = (min(promised, self.every) if early else promised) if believed else following
        return left == 0

    def _read(self, residual: Tensor) -> float:
        """Reads the largest finite residual off the device; the first step's along with it, in one transfer."""
        largest = residual.max() if self.all_finite else residual.nan_to_num(0.0, posinf=0.0).max()
        if self._first is None:
            value = float(largest)
        else:
            both = torch.complex(self._first.to(largest.dtype), largest).item()
            self._first, self._before, value = None, (1, both.real), both.imag
        if self.all_finite and not math.isfinite(value):
            self.all_finite = False
            return self._read(residual)
        return value

    def _steps_left(self, step: int, largest: float) -> float:
        """How many more steps it will take if the residual declines as it did; 0 if none is left.

        Args:
            step: The step.
            largest: Its largest residual.
        """
        before, self._before = self._before, (step, largest)
        if largest == 0:
            return 0
        ratio = 0.0 if before is None else before[1] / largest
        decline = math.log(ratio) / (step - before[0]) if before is not None and 1 < ratio < math.inf else 0.0
        # A residual that starts small may yet grow.
        if largest <= self.tol and (decline > 0 or before is None or step >= self.every):
            return 0
        return math.log(largest / self.tol) / decline if decline > 0 else math.inf
