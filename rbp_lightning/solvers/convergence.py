"""The convergence test of a forward solve, per sample."""

from typing import NamedTuple

import torch
from torch import Tensor

from rbp_lightning.check_schedule import FALLING, rounding_floor
from rbp_lightning.fixed_point import Residual
from rbp_lightning.pytree import Vector, change_and_size, leaf_norms, subtract
from rbp_lightning.status import Status

GROWTH = 1.001
"""A residual has grown if it exceeds an earlier one by this factor, which allows for rounding of the norms."""


class Observation(NamedTuple):
    """The residual of one step.

    Attributes:
        step: The number of the step.
        change: Absolute residual ||F(h) - h|| per sample.
        size: ||F(h)|| per sample.
        residual: Relative residual ``change / max(size, atol / tol)``, which is compared with the tolerance; with
            ``per_leaf`` the largest over the leaves.
        leaves: With ``per_leaf``, the change and size of each leaf, ``[num_leaves, *batch]``, and the index of the leaf
            with the largest relative residual.
    """

    step: int
    change: Tensor
    size: Tensor
    residual: Tensor
    leaves: tuple[Tensor, Tensor, Tensor] | None = None

    def worst(self, of: "Observation | None" = None) -> tuple[Tensor, Tensor]:
        """Change and size per sample; with ``per_leaf``, those of the leaf with the largest relative residual.

        Args:
            of: The observation that decides which leaf that is; ``None`` for this one.
        """
        other = self if of is None else of
        if self.leaves is None or other.leaves is None:
            return self.change, self.size
        changes, sizes, index = *self.leaves[:2], other.leaves[2][None]
        return changes.gather(0, index)[0], sizes.gather(0, index)[0]


class ConvergenceTest:
    """Records the residuals of an iteration, and determines the status of each sample.

    The status depends only on the first and the last two residuals, and therefore not on ``check_every``.

    Args:
        tol: Relative residual at which a sample has converged.
        atol: Absolute residual at which a sample has converged.
        batch_dims: The number of leading dimensions that index independent samples.
        epsilon: Relative precision of the update.
        per_leaf: Whether each leaf must converge relative to its own norm.

    Attributes:
        history: The residuals of the observed steps.
        first: The first observation.
        before: The last but one observation.
        last: The last observation.

    Example:
        >>> test = ConvergenceTest(tol=0.2, atol=0.0, batch_dims=1, epsilon=1e-7)
        >>> residual = test.observe(1, [torch.tensor([[1.0], [1.0]])], [torch.tensor([[1.1], [2.0]])])
        >>> residual, test.codes(stalled=False)
        (tensor([0.0909, 0.5000]), tensor([0, 2]))
    """

    def __init__(self, tol: float, atol: float, batch_dims: int, epsilon: float, per_leaf: bool = True) -> None:
        self.tol, self.batch_dims, self.epsilon, self.per_leaf = tol, batch_dims, epsilon, per_leaf
        self.history: list[Residual] = []
        self.first: Observation | None = None
        self.before: Observation | None = None
        self.last: Observation | None = None
        self._least_size = atol / tol if tol > 0 else 0.0

    def observe(self, step: int, vector: Vector, image: Vector) -> Tensor:
        """Records the residual of a step, without synchronising with the device.

        Args:
            step: Number of the step.
            vector: Leaves of h.
            image: Leaves of F(h).

        Returns:
            The relative residual per sample.
        """
        per_leaf = self.per_leaf and len(vector) > 1
        if per_leaf:
            change, size = leaf_norms(subtract(image, vector), self.batch_dims), leaf_norms(image, self.batch_dims)
        else:
            change, size = change_and_size(vector, image, self.batch_dims)
        residual = change / size.clamp_min(max(self._least_size, torch.finfo(size.dtype).tiny))
        residual.add_(size, alpha=0)  # NaN where the norm overflowed, where the quotient would be 0
        leaves = None
        if per_leaf:
            residual, worst = residual.max(dim=0)
            leaves = change, size, worst
            change, size = (torch.linalg.vector_norm(norms, dim=0) for norms in (change, size))
        self.before, self.last = self.last, Observation(step, change, size, residual, leaves)
        self.first = self.first or self.last
        self.history.append(Residual(step, residual, change))
        return residual

    def forget_last(self) -> None:
        """Drops the last observation."""
        self.last = self.before
        self.history.pop()

    def codes(self, stalled: bool) -> Tensor:
        """The status of each sample: int64, the ``code`` of a ``Status``.

        Args:
            stalled: Whether the iteration was stopped because it had stalled at the level of rounding.
        """
        last, first, before = self.last, self.first, self.before
        assert last is not None  # every iteration observes its first and last steps
        assert first is not None
        codes = torch.where(last.residual <= self.tol, Status.CONVERGED.code, Status.MAX_STEPS.code)
        consecutive = before is not None and before.step == last.step - 1
        if self.tol > 0 and (stalled or consecutive):
            at_floor = (last.residual > self.tol) & (last.residual <= rounding_floor(self.epsilon))
            if not stalled and before is not None:
                at_floor &= last.worst()[0] > FALLING * before.worst(of=last)[0]
            codes = torch.where(at_floor, Status.STALLED.code, codes)
        if consecutive and before is not None:
            growing = (last.change > GROWTH * before.change) & (last.change > GROWTH * first.change)
            # A warm start may begin at the level of rounding, where changes can grow without meaning.
            rounding = max(self.epsilon**0.5, min(64 * self.epsilon, 0.25))
            growing &= last.change > rounding * last.size
            codes = torch.where(growing & (codes == Status.MAX_STEPS.code), Status.DIVERGED.code, codes)
        not_finite = torch.where(first.residual.isfinite(), Status.DIVERGED.code, Status.NAN.code)
        return torch.where(last.residual.isfinite(), codes, not_finite)
