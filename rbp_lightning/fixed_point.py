"""What a forward solve returns, and how its outcome is judged."""

from dataclasses import dataclass
from enum import Enum

import torch
from torch import Tensor

from rbp_lightning.errors import UserError
from rbp_lightning.failures import Failure
from rbp_lightning.pytree import State, Vector, approximate_norms, minus


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
        residual: Norm of the last change of the state that was observed over the norm of the state, one value for each
            sample (a scalar tensor where the state has no batch); of a sample at its best iterate, that iterate's. What
            has converged by then may be taken one step further that is not observed, the one on the tape.
        status: How the iteration ended; the worst over the samples.
        verdicts: How it ended for each sample, int64, as numbers in the order of ``Status``.

    Example:
        >>> fixed_point = NeumannRBP()(torch.cos, torch.zeros(()))
        >>> fixed_point.steps, fixed_point.converged, fixed_point.state.detach()
        (39, True, tensor(0.7391))
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

    Attributes:
        change: Norm of the last change observed, one value for each sample.
        followed: Whether more steps come after the solver's, so that it need not observe its last one.
        settled: Whether every sample is known to have converged at the last change observed. A solver that has read the
            residual can say so, and nothing more is observed.

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
        self.followed = self.settled = self._ordinary = False
        self._residual: Tensor | None = None
        self._first_change: Tensor | None = None
        self._largest_change: Tensor | None = None
        self._rounding = 0.0

    def observe(self, previous: Vector, current: Vector) -> None:
        """Records the change between two successive iterates, without a transfer from the device.

        Args:
            previous: Leaves of the iterate before the update.
            current: Leaves of the iterate after it.

        Raises:
            UserError: If the update changed the shapes of the state, or handed a leaf of it through.
        """
        before, after = ([getattr(leaf, "shape", ()) for leaf in leaves] for leaves in (previous, current))
        if before != after or not all(isinstance(leaf, Tensor) for leaf in current):
            before, after = ([tuple(shape) for shape in shapes] for shapes in (before, after))
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
        (change, size), self._ordinary = approximate_norms([minus(current, previous), current], self.batch_dims)
        self.change, self._size, self._residual = change, size, None
        if self._first_change is None or self._largest_change is None:
            self._first_change = self._largest_change = change
            self._known = change, size
            self._rounding = max(torch.finfo(leaf.dtype).eps for leaf in current) ** 0.5
        self._largest_change = torch.fmax(self._largest_change, change)
        if not self._ordinary:
            unknown = size.isnan()
            change, size = torch.where(unknown, self._known[0], change), torch.where(unknown, self._known[1], size)
        self._known = change, size

    @property
    def residual(self) -> Tensor:
        """Relative residual of the last change observed, one value for each sample; infinite before the first one."""
        if self._first_change is None:
            return torch.tensor(float("inf"))
        if self._residual is None:
            quotient = torch.true_divide if self._ordinary else _quotient
            self._residual = quotient(self.change, self._size)
        return self._residual

    @property
    def verdicts(self) -> Tensor:
        """How each sample fares, int64, as numbers in the order of ``Status``; of the shape of the residual."""
        if self._first_change is None or self._largest_change is None:
            return torch.tensor(_ORDER.index(Status.MAX_STEPS)).expand_as(self.residual)
        if self.settled:
            return torch.full_like(self.residual, _ORDER.index(Status.CONVERGED), dtype=torch.int64)
        # Figures are known to be ordinary on the CPU alone, where nothing has to be waited for.
        if self._ordinary and not bool(_exceeds(self.change, self._first_change).any()):
            return (self.residual > self.tol).long()
        change, size = self._known
        residual = _quotient(change, size)
        # A warm start may begin at rounding error, from where any change is growth; the changes of a contraction
        # whose Jacobian is not normal may grow at first, and then fall well below their peak.
        growing = _exceeds(change, self._first_change) & (change > self._largest_change / 2)
        diverging = growing & (residual > self._rounding) | size.isinf()
        verdicts = torch.where(diverging, _ORDER.index(Status.DIVERGED), _ORDER.index(Status.MAX_STEPS))
        verdicts = torch.where(residual <= self.tol, _ORDER.index(Status.CONVERGED), verdicts)
        # What was growing before it became NaN has overflowed.
        unknown = self._size.isnan() & (verdicts != _ORDER.index(Status.DIVERGED))
        return torch.where(unknown, _ORDER.index(Status.NAN), verdicts)

    def failed(self) -> Tensor:
        """Which samples diverged, met NaN or are held, bool, of the shape of the residual."""
        verdicts = self.verdicts
        failed = (verdicts == _ORDER.index(Status.DIVERGED)) | (verdicts == _ORDER.index(Status.NAN))
        return failed if self.held is None else failed | self.held

    def result(self, state: State, steps: int) -> FixedPoint:
        """Builds the solve's result.

        Args:
            state: The last iterate.
            steps: How many times the update was applied.
        """
        verdicts = self.verdicts
        status = Status.CONVERGED if self.settled else _ORDER[int(verdicts.max())]
        return FixedPoint(state, steps, self.residual, status, verdicts)


def _exceeds(change: Tensor, other: Tensor) -> Tensor:
    """Whether a change is larger than another, by more than the error of their norms."""
    return change > 1.001 * other


def _quotient(change: Tensor, size: Tensor) -> Tensor:
    """Relative residual; infinite where the state is, though the change may still be finite."""
    return (change / size.clamp_min(torch.finfo(size.dtype).tiny)).masked_fill(size == float("inf"), float("inf"))
