"""Reduced rank extrapolation."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vecdot

from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_count
from rbp_lightning.pytree import Vector, ravel, unravel
from rbp_lightning.solvers.affine_weights import REGULARIZATION, affine_weights
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.history import History
from rbp_lightning.state_function import precision


@dataclass(slots=True)
class Cycle:
    """The plain steps since the last extrapolation.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        epsilon: Relative precision of the update.
        length: Number of steps before the next one.
        longest: Most of them.
        waiting: Number of steps before the first cycle begins.
        checked: Whether an extrapolation has been looked at, so that predictions know of it.
        count: Number of steps taken in this cycle.
        history: F(h) - h of each; ``None`` before the first one.
        plain: What an extrapolation is replaced by where it proves worse: F(h) and F(h) - h of the step before it, and
            the latter's square; ``None`` where none was made.
    """

    batch_dims: int
    epsilon: float
    length: int
    longest: int
    waiting: int = 0
    checked: bool = False
    count: int = 0
    history: History | None = None
    plain: tuple[Tensor, Tensor, Tensor] | None = None

    def step(self, vector: Vector, image: Vector) -> Vector:
        """Takes F(h) for the next iterate, or at the end of the cycle the extrapolation.

        Args:
            vector: Leaves of h.
            image: Leaves of F(h).
        """
        if self.waiting > 0:
            self.waiting -= 1
            return image
        before, following = ravel(vector, self.batch_dims), ravel(image, self.batch_dims)
        if self.history is None:
            self.history = History(following, self.longest)
        if self.plain is None:
            self.history.put_difference(self.count, following, before)
        else:
            change, (plain, plain_change, plain_square) = following - before, self.plain
            better = (vecdot(change, change) < plain_square)[..., None]
            following = torch.where(better, following, plain)
            self.history.put(0, torch.where(better, change, plain_change))
            image, self.plain = unravel(following, image), None
        self.count += 1
        if self.count < self.length:
            return image
        changes = self.history.first(self.length)
        gram = changes @ changes.mT
        # A copy of the last change, since the next cycle overwrites it.
        self.plain, self.count = (following, changes[..., -1, :].clone(), gram[..., -1, -1]), 0
        regularization = REGULARIZATION * max(self.epsilon, precision(image))
        return unravel(_extrapolated(following, changes, gram, regularization), image)

    def before_extrapolation(self, image: Vector) -> Vector:
        """F(h) of the last plain step before an extrapolation.

        Args:
            image: Leaves of F of the extrapolation.
        """
        return image if self.plain is None else unravel(self.plain[0], image)

    @property
    def begins_with_extrapolation(self) -> bool:
        """Whether F is being applied to an extrapolation."""
        return self.count == 0 and self.plain is not None

    def adapt(self, steps_left: float) -> None:
        """Makes a cycle that begins longer if many are to follow, or shorter if less will do.

        Args:
            steps_left: Predicted number of steps left.
        """
        if self.begins_with_extrapolation:
            needed = steps_left + 2 if steps_left < self.length else self.length + (steps_left > 3 * self.length)
            self.length = max(2, min(math.ceil(needed), self.longest))

    def plan(self, step: int, schedule: CheckSchedule) -> None:
        """Moves the next convergence check to where F is applied to an extrapolation.

        Args:
            step: Number of the step that was checked, and is not yet part of the cycle.
            schedule: Has the next check.
        """
        self.checked |= self.plain is not None
        shown = step + self.waiting + self.length - self.count
        if self.checked:
            wanted = step + min(schedule.steps_left, 2 * schedule.check_every)
            shown += max(0, int(wanted - shown) // self.length) * self.length
        schedule.next_check = min(shown, max(schedule.next_check, step + schedule.check_every))


class ReducedRankExtrapolation(FixedPointSolver):
    """Plain steps h <- F(h), and after each cycle of them the affine combination of their results of least residual.

    With the changes u_j = F(h_j) - h_j of a cycle, the next iterate is the sum of c_j F(h_j) with the weights c_j of
    sum 1 that minimise ||sum of c_j u_j|| (Sidi, Vector Extrapolation Methods with Applications, SIAM 2017, chapter 2).
    For a linear F that is GMRES, restarted after each cycle. An extrapolation whose residual turns out not to be lower
    than that of the step before it is dropped, sample by sample. Nearly all of the time is that of F: a cycle costs one
    Gram matrix and one combination.

    It cannot be put on a tape, as ``BPTT`` would: combine it with an implicit estimator.

    Args:
        max_steps: Most applications of the update, at least 1. An estimator that tapes K steps takes them out of
            this number. Unless ``tol`` is 0, the last one measures the residual of the iterate that is returned.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs exactly ``max_steps``,
            unless no sample is finite any more.
        check_every: Steps between two convergence checks, each of which waits for the device; those after an
            extrapolation are taken where they are near.
        atol: Norm of the change ||F(h) - h|| at which a sample has converged whatever its own norm, for fixed points
            at zero; ``None`` is ``tol / 1000``. It is not used where ``tol`` is 0.
        per_leaf: Whether each leaf of a state that has several must converge relative to its own norm; ``false`` takes
            one norm over all of them, in which a large leaf hides a small one.
        cycle: Steps in a cycle, 2 to 50; so many states are kept.
        warm_up: Plain steps before the first cycle, at least 0.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> slow = lambda h: 0.99 * h + torch.tensor([1.0, 2.0])
        >>> [NeumannRBP(0, solver(2000))(slow, torch.zeros(2)).steps for solver in (Picard, ReducedRankExtrapolation)]
        [919, 18]
    """

    differentiable = False

    def __init__(
        self,
        max_steps: int = 100,
        tol: float = 1e-6,
        check_every: int = 10,
        atol: float | None = None,
        per_leaf: bool = True,
        cycle: int = 8,
        warm_up: int = 0,
    ) -> None:
        super().__init__(max_steps, tol, check_every, atol, per_leaf)
        self.cycle = check_count(self, "cycle", cycle, 2, 50)
        self.warm_up = check_count(self, "warm_up", warm_up, 0)

    def init(self, vector: Vector, batch_dims: int) -> Cycle:
        """An empty cycle."""
        return Cycle(batch_dims, precision(vector), self.cycle, self.cycle, self.warm_up)

    def step(self, vector: Vector, image: Vector, memory: Cycle) -> tuple[Vector, Cycle]:
        """Takes F(h) for the next iterate, or at the end of a cycle the extrapolation."""
        return memory.step(vector, image), memory

    def after_check(self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: Cycle) -> Cycle:
        """Has the next check look at an extrapolation."""
        memory.plan(step, schedule)
        return memory


def _extrapolated(following: Tensor, changes: Tensor, gram: Tensor, regularization: float) -> Tensor:
    """The sum of c_j F(h_j) in terms of F(h_q), the last of them: F(h_j) is that less the changes after h_j."""
    weights = affine_weights(gram, -1, regularization)
    left_out = weights.cumsum(-1) - weights
    return following - (left_out[..., None, :] @ changes).squeeze(-2)
