"""The options of one call of an estimator."""

from collections.abc import Sequence
from dataclasses import dataclass

from rbp_lightning.errors import UserError, check_count, check_instance
from rbp_lightning.estimators.warm_start import WarmStart


@dataclass(frozen=True)
class Options:
    """The options of one call; see ``GradientEstimator.__call__``.

    Attributes:
        growth_fails: Whether a residual that grows at the end is a failure. It is not for intermediate states.
    """

    batch_dims: int = 0
    warm_start: WarmStart | None = None
    max_steps: int | None = None
    history: bool = False
    progress: bool = False
    order: int = 1
    states_at: tuple[int, ...] = ()
    growth_fails: bool = True

    @classmethod
    def checked(
        cls,
        owner: object,
        batch_dims: int,
        warm_start: WarmStart | None,
        max_steps: int | None,
        history: bool,
        progress: bool,
        order: int,
        states_at: Sequence[int],
    ) -> "Options":
        """Checks the options; see ``GradientEstimator.__call__``.

        Args:
            owner: The estimator.
            batch_dims: Number of batch dimensions.
            warm_start: Results of the last solve.
            max_steps: Maximum number of applications of F.
            history: Whether to record all residuals.
            progress: Whether to show a progress bar.
            order: The highest order of derivatives.
            states_at: The steps whose states are returned.

        Raises:
            UserError: If an option is invalid.
        """
        if warm_start is not None:
            check_instance(owner, "warm_start", warm_start, WarmStart, "one that only this problem uses, or None")
        if not isinstance(states_at, Sequence) or isinstance(states_at, str):
            raise UserError(
                f"{type(owner).__name__}: states_at={states_at!r} is not a sequence: pass numbers of steps, such as "
                "[5, 10]."
            )
        return cls(
            check_count(owner, "batch_dims", batch_dims, 0),
            warm_start,
            None if max_steps is None else check_count(owner, "max_steps", max_steps, 1),
            history,
            progress,
            check_count(owner, "order", order, 1),
            tuple(check_count(owner, "states_at", step, 1) for step in states_at),
        )

    @property
    def plain(self) -> bool:
        """Whether only the fixed point and its first derivatives are requested."""
        unwatched = self.warm_start is None and not self.history and not self.progress
        return unwatched and self.order == 1 and not self.states_at
