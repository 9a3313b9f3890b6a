"""Judging the iterates of a forward solve, sample by sample."""

from typing import NamedTuple

import torch
from torch import Tensor

from rbp_lightning.check_schedule import FALLING, rounding_floor
from rbp_lightning.pytree import Vector, change_and_size
from rbp_lightning.status import Status

GROWTH = 1.001
"""A change has grown when it is so many times another one, by more than the error of their norms."""


class Observation(NamedTuple):
    """A step whose change was measured.

    Attributes:
        step: Its number.
        change: ||F(h) - h|| per sample.
        size: ||F(h)|| per sample.
        residual: Their quotient, with ``atol / tol`` for the least size; what is compared with the tolerance.
    """

    step: int
    change: Tensor
    size: Tensor
    residual: Tensor


class ConvergenceTest:
    """Records the changes of an iteration, and says per sample how it ended.

    The verdict depends on the first change and on the last two alone, so not on how often it was checked.

    Args:
        tol: Largest residual of a converged sample.
        atol: Largest change of a converged sample, whatever its size.
        batch_dims: The number of leading dimensions that index independent samples.
        epsilon: Relative precision of the update.

    Attributes:
        history: Steps that were observed, with their residuals.
        last: The newest observation.

    Example:
        >>> test = ConvergenceTest(tol=0.2, atol=0.0, batch_dims=1, epsilon=1e-7)
        >>> residual = test.observe(1, [torch.tensor([[1.0], [1.0]])], [torch.tensor([[1.1], [2.0]])])
        >>> residual, test.codes(stalled=False)
        (tensor([0.0909, 0.5000]), tensor([0, 2]))
    """

    def __init__(self, tol: float, atol: float, batch_dims: int, epsilon: float) -> None:
        self.tol, self.batch_dims, self.epsilon = tol, batch_dims, epsilon
        self.history: list[tuple[int, Tensor]] = []
        self.first: Observation | None = None
        self.before: Observation | None = None
        self.last: Observation | None = None
        self._least_size = atol / tol if tol > 0 else 0.0

    @torch.no_grad()
    def observe(self, step: int, vector: Vector, image: Vector) -> Tensor:
        """Records a change, without waiting for the device.

        Args:
            step: Number of the step.
            vector: Leaves of h.
            image: Leaves of F(h).

        Returns:
            The residual per sample.
        """
        change, size = change_and_size(vector, image, self.batch_dims)
        residual = change / size.clamp_min(max(self._least_size, torch.finfo(size.dtype).tiny))
        residual.add_(size, alpha=0)  # NaN where the norm has overflowed, which a finite change over it would not be
        self.before, self.last = self.last, Observation(step, change, size, residual)
        self.first = self.first or self.last
        self.history.append((step, residual))
        return residual

    def codes(self, stalled: bool) -> Tensor:
        """How each sample ended: int64, each the ``code`` of a ``Status``.

        Args:
            stalled: Whether the iteration was stopped because it had stalled at rounding.
        """
        last, first, before = self.last, self.first, self.before
        assert last is not None  # every iteration observes its first and its last step
        assert first is not None
        codes = torch.where(last.residual <= self.tol, Status.CONVERGED.code, Status.MAX_STEPS.code)
        consecutive = before is not None and before.step == last.step - 1
        if self.tol > 0 and (stalled or consecutive):
            at_floor = (last.residual > self.tol) & (last.residual <= rounding_floor(self.epsilon))
            if not stalled and before is not None:
                at_floor &= last.change > FALLING * before.change
            codes = torch.where(at_floor, Status.STALLED.code, codes)
        if consecutive and before is not None:
            growing = (last.change > GROWTH * before.change) & (last.change > GROWTH * first.change)
            # A warm start may begin at rounding, from where any change is growth.
            rounding = max(self.epsilon**0.5, min(64 * self.epsilon, 0.25))
            growing &= last.change > rounding * last.size
            codes = torch.where(growing & (codes == Status.MAX_STEPS.code), Status.DIVERGED.code, codes)
        not_finite = torch.where(first.residual.isfinite(), Status.DIVERGED.code, Status.NAN.code)
        return torch.where(last.residual.isfinite(), codes, not_finite)
