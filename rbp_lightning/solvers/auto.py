"""Picard iteration that switches to extrapolation when that is faster."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.linalg import vecdot

from rbp_lightning.agreement import total
from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_count
from rbp_lightning.pytree import Vector, ravel
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.reduced_rank_extrapolation import Cycle
from rbp_lightning.state_function import precision

FEW_STEPS = 10
"""If at most this many plain steps are predicted to remain, the steps stay plain."""

MANY_STEPS = 50
"""If at least this many plain steps are predicted to remain, it always extrapolates."""

ONE_MODE = 0.8
"""From this cosine of the angle between two changes on, one mode dominates the error."""

SHARE = 0.5
"""An extrapolation has failed if it lowers the logarithm of the residual by less than this fraction of what plain steps
were predicted to, such as when changes grow before they decline. Plain steps after it have failed if they lower it by
less than this fraction of what the cycles did."""

MOST_GROWING = 0.5
"""If the change of at least this fraction of the samples grows, the steps stay plain."""

SHORT_CYCLE = 4
"""Number of steps in the first cycle if one mode dominates."""


@dataclass(slots=True)
class Progress:
    """The state of the solver.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        epsilon: Relative precision of the update.
        before: Leaves of the previous iterate.
        cycle: The extrapolation; ``None`` while the steps are plain.
        decline: Decrease of the logarithm of the residual per plain step, when the cycles began.
        began: Step and largest residual at the check when the cycles began.
        residual: Largest residual at the last check.
        checked_at: The step of the last check.
        failed: Whether an extrapolation has lowered the residual less than plain steps were predicted to.
        slow: Decline of plain steps below which cycles begin again; infinite until an extrapolation fails.
    """

    batch_dims: int
    epsilon: float
    before: Vector
    cycle: Cycle | None = None
    decline: float = 0.0
    began: tuple[int, float] = (0, math.inf)
    residual: float = math.inf
    checked_at: int = 0
    failed: bool = False
    slow: float = math.inf


class Auto(FixedPointSolver):
    """Picard iteration that switches to ``ReducedRankExtrapolation`` when that takes less time.

    Each convergence check predicts the number of remaining plain steps from the decline of the residual. Up to 10, the
    steps stay plain. With more, it extrapolates if one mode dominates the error, which the angle between the last two
    changes shows; the first cycle then has 4 steps. From 50 on it always extrapolates, in cycles of ``cycle`` steps.
    The steps stay plain if the change of half of the samples grows, as for an update that is not a contraction. They
    become plain again after an extrapolation that lowers the residual far less than plain steps were predicted to,
    until they turn out to lower it far less than the cycles did, as where fast modes die first. The decision is made
    for the whole batch, but each sample has its own weights.

    The iterates therefore depend on the schedule of the checks, but the convergence test does not. It cannot be
    unrolled by ``BPTT``; combine it with an implicit estimator.

    Args:
        max_steps: Maximum number of applications of the update, at least 1, including those that an estimator
            differentiates. Unless ``tol`` is 0, the last one only measures the residual of the result.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs ``max_steps`` plain
            steps, or until no sample is finite.
        check_every: Steps between two convergence checks, each of which synchronises with the device. If at least 6,
            the first check comes after a third of that, and later ones when the residual is predicted to converge, at
            most ``2 * check_every`` steps apart, or at the next extrapolation.
        atol: Absolute residual ||F(h) - h|| at which a sample has also converged, for fixed points at zero; ``None`` is
            ``tol / 1000``. Not used if ``tol`` is 0.
        per_leaf: Whether each leaf of the state must converge relative to its own norm; ``false`` uses one norm over
            all leaves, in which a large leaf can hide a small one.
        cycle: Maximum number of steps in a cycle, 4 to 50; as many states are stored, once it extrapolates.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> slow = lambda h: 0.99 * h + torch.tensor([1.0, 2.0])
        >>> start = torch.zeros(2, dtype=torch.float64)
        >>> [NeumannRBP(0, solver(2000))(slow, start).steps for solver in (Picard, Auto)]
        [919, 8]
    """

    differentiable = False

    def __init__(
        self,
        max_steps: int = 100,
        tol: float = 1e-6,
        check_every: int = 10,
        atol: float | None = None,
        per_leaf: bool = True,
        cycle: int = 16,
    ) -> None:
        super().__init__(max_steps, tol, check_every, atol, per_leaf)
        self.cycle = check_count(self, "cycle", cycle, SHORT_CYCLE, 50)

    def init(self, vector: Vector, batch_dims: int) -> Progress:
        """Starts with plain steps."""
        return Progress(batch_dims, precision(vector), vector)

    def step(self, vector: Vector, image: Vector, memory: Progress) -> tuple[Vector, Progress]:
        """Takes a plain step, or the next step of a cycle."""
        if memory.cycle is None:
            memory.before = vector
            return image, memory
        if not memory.failed:
            memory.before = ()
            return memory.cycle.step(vector, image), memory
        plain = memory.cycle.before_extrapolation(image)
        memory.before, memory.cycle, memory.failed = vector, None, False
        return plain, memory

    def after_check(
        self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: Progress
    ) -> Progress:
        """Decides whether to extrapolate, and moves the next check to an extrapolation."""
        left, cycle = schedule.steps_left, memory.cycle
        if cycle is None and self.tol > 0 and FEW_STEPS < left < math.inf:
            decline = math.log(schedule.largest / self.tol) / left
            if decline < memory.slow:
                cosine, growing = _changes(memory.before, vector, image, memory.batch_dims)
                one_mode = cosine >= ONE_MODE
                if growing < MOST_GROWING and (one_mode or left >= MANY_STEPS):
                    length = SHORT_CYCLE if one_mode and memory.slow == math.inf else self.cycle
                    cycle = memory.cycle = Cycle(memory.batch_dims, memory.epsilon, length, self.cycle)
                    memory.decline, memory.began = decline, (step, schedule.largest)
        if cycle is not None:
            if cycle.begins_with_extrapolation:
                expected = memory.residual * math.exp(-SHARE * memory.decline * (step - memory.checked_at))
                memory.failed = not schedule.largest < expected
                if memory.failed:
                    began, residual = memory.began
                    reached = (math.log(residual) - math.log(schedule.largest)) / (step - began)
                    memory.slow = SHARE * reached
            if not memory.failed:
                cycle.adapt(left)
                cycle.plan(step, schedule)
        memory.residual, memory.checked_at = schedule.largest, step
        return memory

    def propagated(self, vector: Vector, product: Callable[[Vector], Vector], memory: Progress) -> Vector | None:
        """Within a cycle, the product with the last change."""
        return None if memory.cycle is None else memory.cycle.propagate(vector, product)


@torch.no_grad()
def _changes(before: Vector, vector: Vector, image: Vector, batch_dims: int) -> list[float]:
    """Compares two changes: the mean absolute cosine between them, and the fraction of samples whose change grew.

    Both are over all processes that share the solve. Synchronises with the device.
    """
    states = [ravel(state, batch_dims) for state in (before, vector, image)]
    one, other = states[1] - states[0], states[2] - states[1]
    square, product, following = vecdot(one, one), vecdot(one, other), vecdot(other, other)
    cosine = product.abs() / (square.sqrt() * following.sqrt())  # the product of the squares could underflow
    known, growing = ~cosine.isnan(), following > square
    counts = [flag.sum().to(cosine.dtype) for flag in (known, growing, torch.ones_like(known))]
    sums = total(torch.stack([cosine.nansum(), *counts]))
    figures: list[float] = (sums[::2] / sums[1::2]).tolist()
    return figures
