"""What a solve is asked for beside its fixed point."""

from collections.abc import Sequence
from dataclasses import dataclass

from rbp_lightning.errors import UserError, check_count, check_instance
from rbp_lightning.estimators.warm_start import WarmStart


@dataclass(frozen=True)
class Options:
    """The options of a call of an estimator, as ``GradientEstimator.__call__`` has them.

    Attributes:
        growth_fails: Whether growth at the end is a failure, as it is of all but states on the way.
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
        """Makes the options after checking them.

        Args:
            owner: The estimator.
            batch_dims: See ``GradientEstimator.__call__``, as for the others.
            warm_start: The last solve.
            max_steps: Most applications of F.
            history: Whether all residuals are wanted.
            progress: Whether to show a progress bar.
            order: The highest order of derivatives.
            states_at: The steps whose states are wanted.

        Raises:
            UserError: If one is not as described.
        """
        if warm_start is not None:
            check_instance(owner, "warm_start", warm_start, WarmStart, "one that this problem alone uses, or None")
        if not isinstance(states_at, Sequence) or isinstance(states_at, str):
            raise UserError(
                f"{type(owner).__name__}: states_at={states_at!r} is no sequence: pass numbers of steps, as in [5, 10]."
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
        """Whether nothing is asked for but the fixed point and its gradient."""
        unwatched = self.warm_start is None and not self.history and not self.progress
        return unwatched and self.order == 1 and not self.states_at
