"""How an iteration ended."""

from enum import Enum

from rbp_lightning.failures import Failure


class Status(str, Enum):
    """Outcome of a fixed-point iteration or of a linear solve; of a batch, that of its worst sample.

    - ``CONVERGED``: the residual is within the tolerance.
    - ``STALLED``: the residual stopped falling above the tolerance, at a level that rounding in the dtype explains.
      More steps would not help, so it is no failure.
    - ``MAX_STEPS``: the steps ran out above the tolerance; or the update was found to be random, so that a small
      residual means nothing.
    - ``DIVERGED``: the steps grew up to the end, or the iterates ceased to be finite.
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
        """Its number in a tensor of per-sample codes; worse outcomes have higher ones."""
        return _ORDER.index(self)

    @classmethod
    def of_code(cls, code: int) -> "Status":
        """The status with a number."""
        return _ORDER[code]

    @property
    def failure(self) -> Failure | None:
        """The failure of a forward solve that ended so; ``None`` where it is none."""
        return _FAILURES.get(self)


_ORDER = list(Status)

_FAILURES = {
    Status.MAX_STEPS: Failure.NOT_CONVERGED,
    Status.DIVERGED: Failure.DIVERGED,
    Status.NAN: Failure.NAN,
}
