"""Picard iteration that turns to extrapolation where that pays."""

import math
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
"""With so few plain steps left, they are taken."""

MANY_STEPS = 50
"""With more plain steps left, extrapolation pays whatever the update costs."""

ONE_MODE = 0.8
"""Cosine of the angle between two changes from which on one mode is nearly all that is left to converge."""

SHARE = 0.5
"""An extrapolation has failed that lowers the logarithm of the residual by less than this share of what plain steps
were to, as it does where a change grows for a while before it declines."""

MOST_GROWING = 0.5
"""Share of the samples whose change grows from which on the steps are plain."""

SHORT_CYCLE = 4
"""Steps in the first cycle where one mode is left."""


@dataclass(slots=True)
class Progress:
    """How far it is.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        epsilon: Relative precision of the update.
        before: Leaves of the iterate before the last.
        cycle: The extrapolation; ``None`` while the steps are plain.
        decline: Of the logarithm of the residual, by each of the plain steps before the cycles.
        residual: Largest residual at the last check.
        checked_at: Its step.
        failed: Whether an extrapolation has lowered it less than plain steps were to.
    """

    batch_dims: int
    epsilon: float
    before: Vector
    cycle: Cycle | None = None
    decline: float = 0.0
    residual: float = math.inf
    checked_at: int = 0
    failed: bool = False


class Auto(FixedPointSolver):
    """Picard iteration that turns to ``ReducedRankExtrapolation`` where that takes less time.

    At each convergence check the residual's decline predicts how many more plain steps it takes. With at most 10 the
    plain steps go on. With more, extrapolation pays where one mode is nearly all that is left to converge, as the angle
    between the last two changes tells: cycles have 4 steps at first. With 50 or more it always does, in cycles of
    ``cycle`` steps. The steps are plain ones where the change of half of the samples grows, as of an update that is no
    contraction, and after an extrapolation that lowers the residual far less than they were to. All of this is decided
    for the batch, while each sample has weights of its own.

    So the iterates depend on where they are checked, while whether they have converged does not. It cannot be put on a
    tape, as ``BPTT`` would: combine it with an implicit estimator.

    Args:
        max_steps: Most applications of the update, at least 1. An estimator that tapes K steps takes them out of
            this number. Unless ``tol`` is 0, the last one measures the residual of the iterate that is returned.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs exactly ``max_steps``
            plain steps, unless no sample is finite any more.
        check_every: Steps between two convergence checks, each of which waits for the device. From 6 on, the first
            one comes after a third of them, and the others where the residual's decline predicts convergence, at most
            twice as many later, or at the next extrapolation.
        atol: Norm of the change ||F(h) - h|| at which a sample has converged whatever its own norm, for fixed points
            at zero; ``None`` is ``tol / 1000``. It is not used where ``tol`` is 0.
        per_leaf: Whether each leaf of a state that has several must converge relative to its own norm; ``false`` takes
            one norm over all of them, in which a large leaf hides a small one.
        cycle: Most steps in a cycle, 4 to 50; so many states are kept, once cycles begin.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> slow = lambda h: 0.99 * h + torch.tensor([1.0, 2.0])
        >>> [NeumannRBP(0, solver(2000))(slow, torch.zeros(2)).steps for solver in (Picard, Auto)]
        [919, 12]
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
        """Plain steps."""
        return Progress(batch_dims, precision(vector), vector)

    def step(self, vector: Vector, image: Vector, memory: Progress) -> tuple[Vector, Progress]:
        """Takes F(h) for the next iterate, or the cycle's step."""
        if memory.cycle is None:
            memory.before = vector
            return image, memory
        if not memory.failed:
            memory.before = ()
            return memory.cycle.step(vector, image), memory
        plain = memory.cycle.before_extrapolation(image)
        memory.cycle = None
        return plain, memory

    def after_check(
        self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: Progress
    ) -> Progress:
        """Begins cycles where they pay, and has the next check look at an extrapolation."""
        left, cycle = schedule.steps_left, memory.cycle
        if cycle is None and self.tol > 0 and FEW_STEPS < left < math.inf and not memory.failed:
            cosine, growing = _changes(memory.before, vector, image, memory.batch_dims)
            one_mode = cosine >= ONE_MODE
            if growing < MOST_GROWING and (one_mode or left >= MANY_STEPS):
                length = SHORT_CYCLE if one_mode else self.cycle
                cycle = memory.cycle = Cycle(memory.batch_dims, memory.epsilon, length, self.cycle)
                memory.decline = math.log(schedule.largest / self.tol) / left
        if cycle is not None:
            if cycle.begins_with_extrapolation:
                expected = memory.residual * math.exp(-SHARE * memory.decline * (step - memory.checked_at))
                memory.failed = not schedule.largest < expected
            if not memory.failed:
                cycle.adapt(left)
                cycle.plan(step, schedule)
        memory.residual, memory.checked_at = schedule.largest, step
        return memory


@torch.no_grad()
def _changes(before: Vector, vector: Vector, image: Vector, batch_dims: int) -> list[float]:
    """Compares two changes: the mean of the cosines between them, without sign, and the share of samples that grew.

    The samples are those of all processes that share the solve. It waits for the device.
    """
    states = [ravel(state, batch_dims) for state in (before, vector, image)]
    one, other = states[1] - states[0], states[2] - states[1]
    square, product, following = vecdot(one, one), vecdot(one, other), vecdot(other, other)
    cosine = product.abs() / (square * following).sqrt()
    known, growing = ~cosine.isnan(), following > square
    counts = [flag.sum().to(cosine.dtype) for flag in (known, growing, torch.ones_like(known))]
    sums = total(torch.stack([cosine.nansum(), *counts]))
    figures: list[float] = (sums[::2] / sums[1::2]).tolist()
    return figures
