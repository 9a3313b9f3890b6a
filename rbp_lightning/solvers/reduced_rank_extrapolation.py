"""Reduced rank extrapolation."""

import math
from collections.abc import Callable
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
    """One cycle: the plain steps since the last extrapolation.

    Attributes:
        batch_dims: The number of leading dimensions that index independent samples.
        epsilon: Relative precision of the update.
        length: Number of steps in the cycle.
        longest: Maximum length of a cycle.
        waiting: Number of steps before the first cycle begins.
        checked: Whether an extrapolation has been checked, so that predictions take extrapolations into account.
        count: Number of steps taken in this cycle.
        history: F(h) - h of each step; ``None`` before the first one.
        first: F(h) of the first step, if later changes are products with the change before them.
        propagated: F(h) - h of the next step, if it is such a product.
        last: F(h) - h of the last step, if it is such a product.
        plain: Replaces an extrapolation that turns out to be worse: F(h) and F(h) - h of the step before it, and the
            squared norm of the latter; ``None`` if there was no extrapolation yet.
    """

    batch_dims: int
    epsilon: float
    length: int
    longest: int
    waiting: int = 0
    checked: bool = False
    count: int = 0
    history: History | None = None
    first: Tensor | None = None
    propagated: Vector | None = None
    last: Vector | None = None
    plain: tuple[Tensor, Tensor, Tensor] | None = None

    def step(self, vector: Vector, image: Vector) -> Vector:
        """Takes a plain step, or extrapolates at the end of the cycle.

        Args:
            vector: Leaves of h.
            image: Leaves of F(h).
        """
        if self.waiting > 0:
            self.waiting -= 1
            return image
        following = ravel(image, self.batch_dims)
        if self.history is None:
            self.history = History(following, self.longest)
        if self.propagated is not None:
            self.history.put(self.count, ravel(self.propagated, self.batch_dims))
        elif self.plain is None:
            self.history.put_difference(self.count, following, ravel(vector, self.batch_dims))
        else:
            change, (plain, plain_change, plain_square) = following - ravel(vector, self.batch_dims), self.plain
            better = (vecdot(change, change) < plain_square)[..., None]
            following = torch.where(better, following, plain)
            self.history.put(0, torch.where(better, change, plain_change))
            image, self.plain = unravel(following, image), None
        self.last, self.propagated = self.propagated, None
        self.count += 1
        if self.count < self.length:
            return image
        changes = self.history.first(self.length)
        gram = changes @ changes.mT
        # A copy, because the next cycle overwrites the last change.
        self.plain, self.count = (following, changes[..., -1, :].clone(), gram[..., -1, -1]), 0
        # The rounding errors of the decomposition grow with its order: one mode makes the Gram matrix singular.
        regularization = max(REGULARIZATION, self.length) * max(self.epsilon, precision(image))
        weights = affine_weights(gram, -1, regularization)
        # The sum of c_j F(h_j), where F(h_j) = F(h_q) - u_(j+1) - ... - u_q = F(h_1) + u_2 + ... + u_j.
        earlier = weights.cumsum(-1) - weights  # c_1 + ... + c_(j-1)
        if self.first is None:
            extrapolated = following - _combined(earlier, changes)
        else:  # F(h_q) has the rounding errors of all sums since the first step
            extrapolated = self.first + _combined(1 - earlier[..., 1:], changes[..., 1:, :])
            self.first = None
        return unravel(extrapolated, image)

    def propagate(self, vector: Vector, product: Callable[[Vector], Vector]) -> Vector | None:
        """The next change as a product with the last one of this cycle; ``None`` before its first step.

        Args:
            vector: Leaves of h.
            product: Computes F(v) - F(0) for a linear F.
        """
        if self.history is None or self.count == 0:
            return None
        if self.count == 1:
            self.first = ravel(vector, self.batch_dims)
        last = self.last or unravel(self.history.first(self.count)[..., -1, :], vector)
        self.propagated = product(last)
        return self.propagated

    def before_extrapolation(self, image: Vector) -> Vector:
        """F(h) of the last plain step before an extrapolation.

        Args:
            image: Leaves of F at the extrapolation.
        """
        return image if self.plain is None else unravel(self.plain[0], image)

    @property
    def begins_with_extrapolation(self) -> bool:
        """Whether F is being applied to an extrapolation."""
        return self.count == 0 and self.plain is not None

    def adapt(self, steps_left: float) -> None:
        """At the start of a cycle, lengthens it if many steps remain, or shortens it if few do.

        Args:
            steps_left: Predicted number of remaining steps.
        """
        if self.begins_with_extrapolation:
            needed = steps_left + 2 if steps_left < self.length else self.length + (steps_left > 3 * self.length)
            self.length = max(2, min(math.ceil(needed), self.longest))

    def plan(self, step: int, schedule: CheckSchedule) -> None:
        """Moves the next convergence check to an application of F to an extrapolation.

        Args:
            step: Number of the step that was checked, which is not yet part of the cycle.
            schedule: The schedule of the checks.
        """
        self.checked |= self.plain is not None
        extrapolation = step + self.waiting + self.length - self.count
        if self.checked:
            wanted = step + min(schedule.steps_left, 2 * schedule.check_every)
            extrapolation += max(0, int(wanted - extrapolation) // self.length) * self.length
        schedule.next_check = min(extrapolation, max(schedule.next_check, step + schedule.check_every))


class ReducedRankExtrapolation(FixedPointSolver):
    """Reduced rank extrapolation: cycles of plain steps h <- F(h), each followed by an extrapolation.

    With the changes u_j = F(h_j) - h_j of a cycle, the extrapolation is the sum of c_j F(h_j), where the weights c_j of
    sum 1 minimise ||sum of c_j u_j|| (Sidi, Vector Extrapolation Methods with Applications, SIAM 2017, chapter 2). For
    a linear F this is GMRES, restarted after each cycle. An extrapolation is discarded, per sample, if its residual is
    not smaller than that of the step before it. Almost all time is spent in F: a cycle adds one Gram matrix and one
    combination.

    It cannot be unrolled by ``BPTT``; combine it with an implicit estimator.

    Args:
        max_steps: Maximum number of applications of the update, at least 1, including those that an estimator
            differentiates. Unless ``tol`` is 0, the last one only measures the residual of the result.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs ``max_steps`` steps,
            or until no sample is finite.
        check_every: Steps between two convergence checks, each of which synchronises with the device; checks are moved
            to nearby extrapolations.
        atol: Absolute residual ||F(h) - h|| at which a sample has also converged, for fixed points at zero; ``None`` is
            ``tol / 1000``. Not used if ``tol`` is 0.
        per_leaf: Whether each leaf of the state must converge relative to its own norm; ``false`` uses one norm over
            all leaves, in which a large leaf can hide a small one.
        cycle: Number of steps in a cycle, 2 to 50; as many states are stored.
        warm_up: Number of plain steps before the first cycle, at least 0.

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
        """Takes a plain step, or extrapolates at the end of a cycle."""
        return memory.step(vector, image), memory

    def after_check(self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: Cycle) -> Cycle:
        """Moves the next check to an extrapolation."""
        memory.plan(step, schedule)
        return memory

    def propagated(self, vector: Vector, product: Callable[[Vector], Vector], memory: Cycle) -> Vector | None:
        """Within a cycle, the product with the last change."""
        return memory.propagate(vector, product)


def _combined(coefficients: Tensor, changes: Tensor) -> Tensor:
    return (coefficients[..., None, :] @ changes).squeeze(-2)
