"""The status of a solve: how it ended."""

from enum import Enum

from rbp_lightning.failures import Failure


class Status(str, Enum):
    """Outcome of a fixed-point iteration or a linear solve; for a batch, the outcome of the worst sample.

    - ``CONVERGED``: the residual is within the tolerance.
    - ``STALLED``: the residual stopped falling above the tolerance, at a level that rounding in the dtype explains.
      More steps would not help, so this is not a failure.
    - ``MAX_STEPS``: the residual was above the tolerance after the last step, or the update is random, so that a small
      residual does not mean convergence.
    - ``DIVERGED``: the residual grew up to the last step, or the iterates became non-finite.
    - ``NAN``: the first step was not finite.

    Example:
        >>> Status.MAX_STEPS.failure.policy, Status.STALLED.failure
        ('not_converged', None)
    """

    CONVERGED = "converged"
    STALLED = "stalled"
    MAX_STEPS = "max_steps"
    DIVERGED = "diverged"
    NAN = "nan"

    @property
    def code(self) -> int:
        """The integer of this status in ``FixedPoint.sample_status``; worse outcomes have higher codes."""
        return _ORDER.index(self)

    @classmethod
    def of_code(cls, code: int) -> "Status":
        """The status with a code."""
        return _ORDER[code]

    @property
    def failure(self) -> Failure | None:
        """The failure that this status means for a forward solve; ``None`` if it is not a failure."""
        return _FAILURES.get(self)


_ORDER = list(Status)

_FAILURES = {
    Status.MAX_STEPS: Failure.NOT_CONVERGED,
    Status.DIVERGED: Failure.DIVERGED,
    Status.NAN: Failure.NAN,
}
