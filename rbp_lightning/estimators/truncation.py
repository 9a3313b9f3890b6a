"""Following a gradient to where a tape begins."""

from collections.abc import Callable, Sequence

from torch import Tensor

from rbp_lightning.adjoint import truncation_error
from rbp_lightning.estimators.observer import SolveObserver
from rbp_lightning.estimators.replace_gradient import replace_gradient
from rbp_lightning.pytree import State, Vector, divisor, scaled, widened

FOLLOWED = 3
"""How many steps from the tape's beginning on the gradient is looked at."""


class TruncationWatch:
    """Looks at the gradient where it arrives at a tape and where it is about to leave it, and reports what is left.

    The gradients at the tape's steps are the terms of a Neumann series, which ends where the tape begins.

    Args:
        report: Takes the number of steps, the last term's share and the estimated error.
        batch_dims: The number of leading dimensions that index independent samples.
        observers: Are told the last term's share.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> watch = TruncationWatch(lambda steps, residual, estimate: print(steps, estimate), 0, [])
        >>> state = torch.zeros(())
        >>> for step in range(5):
        ...     state = watch.after_step(step, weight * state + 1)
        >>> watch.after_tape(5, state).backward()
        5 tensor(0.0312)
    """

    def __init__(
        self, report: Callable[[int, Tensor, Tensor], None], batch_dims: int, observers: Sequence[SolveObserver]
    ) -> None:
        self._report = report
        self._batch_dims = batch_dims
        self._observers = observers
        self._steps = 0
        self._terms: dict[int, Vector] = {}

    def after_step(self, step: int, state: State) -> State:
        """Has the gradient at a state looked at, if it is one of the first.

        Args:
            step: Number of the taped step that made it, from 0.
            state: The state.
        """
        if step >= FOLLOWED:
            return state

        def tell(gradient: Vector) -> Vector:
            self._terms[step] = gradient
            if step == 0:
                self._finish()
            return gradient

        return replace_gradient(tell, state)

    def after_tape(self, steps: int, state: State) -> State:
        """Has the gradient that arrives looked at.

        Args:
            steps: How many steps are on the tape.
            state: The state after them.
        """
        self._steps = steps

        def tell(gradient: Vector) -> Vector:
            self._terms = {steps: gradient}
            return gradient

        return replace_gradient(tell, state)

    def _finish(self) -> None:
        terms, self._terms = self._terms, {}
        size = divisor(terms.pop(self._steps), self._batch_dims)
        ending = [scaled(1 / size, widened(terms[step])) for step in sorted(terms, reverse=True)]
        residual, estimate = truncation_error(ending, self._steps - 1, self._batch_dims)
        for observer in self._observers:
            observer.on_adjoint(residual, 0)
        self._report(self._steps, residual, estimate)
