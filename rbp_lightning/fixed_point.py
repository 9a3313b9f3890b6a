"""What a forward solve returns, and how its outcome is judged."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from rbp_lightning.errors import UserError
from rbp_lightning.failures import Failure
from rbp_lightning.pytree import State, Vector, minus, norm, where


class Status(str, Enum):
    """Outcome of a fixed-point iteration; of a batch, that of its worst sample.

    Example:
        >>> Status.MAX_STEPS.failure.policy
        'not_converged'
    """

    CONVERGED = "converged"
    MAX_STEPS = "max_steps"
    DIVERGED = "diverged"
    NAN = "nan"

    @property
    def failure(self) -> Failure | None:
        """The failure that it is; ``None`` for ``CONVERGED``."""
        return _FAILURES.get(self)


_ORDER = list(Status)

_FAILURES = {
    Status.MAX_STEPS: Failure.NOT_CONVERGED,
    Status.DIVERGED: Failure.DIVERGED,
    Status.NAN: Failure.NAN,
}


@dataclass(frozen=True)
class FixedPoint:
    """Result of a forward solve.

    Attributes:
        state: The last iterate, of the structure of the initial state; differentiable when an estimator made it
            with gradients enabled. Samples that diverged or met NaN are at their best iterate.
        steps: How many times the update was applied.
        residual: Norm of the last change of the state over the norm of the state, one value for each sample (a
            scalar tensor where the state has no batch); of a sample at its best iterate, that iterate's.
        status: How the iteration ended; the worst over the samples.
        verdicts: How it ended for each sample, int64, as numbers in the order of ``Status``.

    Example:
        >>> fixed_point = NeumannRBP()(torch.cos, torch.zeros(()))
        >>> fixed_point.steps, fixed_point.converged, fixed_point.state.detach()
        (37, True, tensor(0.7391))
    """

    state: State
    steps: int
    residual: Tensor
    status: Status
    verdicts: Tensor

    @property
    def converged(self) -> bool:
        """Whether every sample reached the tolerance."""
        return self.status is Status.CONVERGED

    def samples(self, *statuses: Status) -> Tensor:
        """Which samples ended so, bool, of the shape of ``residual``.

        Args:
            statuses: Any of these.
        """
        numbers = torch.tensor([_ORDER.index(status) for status in statuses], device=self.verdicts.device)
        return torch.isin(self.verdicts, numbers)


class ConvergenceTest:
    """Judges successive iterates, sample by sample, and reads the verdict off the device in one transfer.

    A sample has converged when its last change is at most ``tol`` times its norm. It has diverged when it holds an
    infinity, or when its change exceeds the first one, by more than rounding explains, and is more than half of the
    largest; otherwise it is NaN when it holds one.

    Args:
        tol: Largest relative residual of a converged sample.
        batch_dims: The number of leading dimensions that index independent samples.
        held: Which samples are held where they are because they failed before, bool; ``None`` for none.

    Example:
        >>> test = ConvergenceTest(tol=0.2, batch_dims=1)
        >>> test.observe([torch.tensor([[1.0], [1.0]])], [torch.tensor([[1.1], [2.0]])])
        >>> test.residual, test.result(None, steps=1).status.value
        (tensor([0.0909, 0.5000]), 'max_steps')
    """

    def __init__(self, tol: float, batch_dims: int, held: Tensor | None = None) -> None:
        self.tol = tol
        self.batch_dims = batch_dims
        self.held = held
        self.residual = torch.tensor(float("inf"))
        self.first_change: Tensor | None = None
        self.largest_change: Tensor | None = None
        self.best_change: Tensor | None = None
        self.best_previous: Vector = []
        self.best_residual = self.residual
        self.verdict = torch.tensor(_ORDER.index(Status.MAX_STEPS))

    def observe(self, previous: Vector, current: Vector) -> None:
        """Records the change between two successive iterates, without a transfer from the device.

        Args:
            previous: Leaves of the iterate before the update.
            current: Leaves of the iterate after it.

        Raises:
            UserError: If the update changed the shapes of the state, or handed a leaf of it through.
        """
        before, after = ([tuple(getattr(leaf, "shape", ())) for leaf in leaves] for leaves in (previous, current))
        if before != after or not all(isinstance(leaf, Tensor) for leaf in current):
            raise UserError(
                f"The update turned a state of shapes {before} into one of shapes {after} and types "
                f"{[type(leaf).__name__ for leaf in current]}: it must return what it was given, one step later."
            )
        if any(one is other for one, other in zip(previous, current, strict=True)):
            raise UserError(
                "The update returned a tensor of the state itself: it must return new ones, and what it does not "
                "change is no state but something to close over."
            )
        previous = [leaf.detach() for leaf in previous]
        current = [leaf.detach() for leaf in current]
        change = norm(minus(current, previous), self.batch_dims)
        size = norm(current, self.batch_dims)
        share = change / size.clamp_min(torch.finfo(size.dtype).tiny)
        self.residual = torch.where(size.isinf(), float("inf"), share)  # the change may still be finite
        if self.first_change is None or self.largest_change is None:
            self.first_change = self.largest_change = change
        if self.batch_dims:
            self._keep_best(previous, change)
        # A warm start may begin at rounding error, from where any change is growth; the changes of a contraction
        # whose Jacobian is not normal may grow at first, and then fall well below their peak.
        rounding = max(torch.finfo(leaf.dtype).eps for leaf in current) ** 0.5
        self.largest_change = torch.maximum(self.largest_change, change)
        growing = (change > self.first_change) & (change > self.largest_change / 2)
        diverging = growing & (self.residual > rounding) | size.isinf()
        verdict = torch.where(diverging, _ORDER.index(Status.DIVERGED), _ORDER.index(Status.MAX_STEPS))
        verdict = torch.where(self.residual <= self.tol, _ORDER.index(Status.CONVERGED), verdict)
        # What was growing before it became NaN has overflowed.
        was_diverging = self.verdict.to(verdict.device) == _ORDER.index(Status.DIVERGED)
        not_a_number = torch.where(was_diverging, _ORDER.index(Status.DIVERGED), _ORDER.index(Status.NAN))
        self.verdict = torch.where(size.isnan(), not_a_number, verdict)

    def _keep_best(self, previous: Vector, change: Tensor) -> None:
        """Keeps what led to each sample's smallest change, from where a sample that fails can be taken up."""
        if self.best_change is None:
            self.best_change, self.best_previous = torch.full_like(change, float("inf")), previous
        better = change < self.best_change  # never where it is NaN
        self.best_change = torch.where(better, change, self.best_change)
        self.best_residual = torch.where(better, self.residual, self.best_residual.to(change.device))
        self.best_previous = where(better, previous, self.best_previous)

    def failed(self) -> Tensor:
        """Which samples diverged, met NaN or are held, bool, of the shape of the residual."""
        failed = (self.verdict == _ORDER.index(Status.DIVERGED)) | (self.verdict == _ORDER.index(Status.NAN))
        failed = failed.expand_as(self.residual)
        return failed if self.held is None else failed | self.held

    def result(self, state: State, steps: int) -> FixedPoint:
        """Builds the solve's result.

        Args:
            state: The last iterate.
            steps: How many times the update was applied.
        """
        verdicts = self.verdict.expand_as(self.residual)
        return FixedPoint(state, steps, self.residual, _ORDER[int(verdicts.max())], verdicts)
