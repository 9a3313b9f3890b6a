"""The interface of forward solvers."""

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import TypeAlias

from rbp_lightning.errors import check_count, check_number
from rbp_lightning.fixed_point import ConvergenceTest
from rbp_lightning.pytree import State

Update: TypeAlias = Callable[[State], State]
"""The map F(h) whose fixed point is wanted; inputs and parameters are what it closes over."""


class FixedPointSolver(ABC):
    """Finds h* = F(h*).

    A solver knows nothing of gradients: whether its operations are taped is the caller's choice of grad mode.

    Args:
        max_steps: Most applications of the update, at least 1. An estimator that tapes K steps takes them out of
            this number.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``max_steps``.

    Example:
        >>> class Damped(FixedPointSolver):
        ...     "h <- (h + F(h)) / 2, which tames oscillations."
        ...     def iterate(self, update, state, max_steps, test):
        ...         for _ in range(max_steps):
        ...             previous, following = state, update(state)
        ...             state = (state + following) / 2
        ...             test.observe([previous], [following])
        ...         return state, max_steps
        >>> NeumannRBP(solver=Damped(max_steps=60))(lambda h: 1 - h, torch.zeros(())).state.detach()
        tensor(0.5000)
    """

    def __init__(self, max_steps: int = 100, tol: float = 1e-6) -> None:
        self.max_steps = check_count(self, "max_steps", max_steps, 1)
        self.tol = check_number(self, "tol", tol, 0.0)

    @abstractmethod
    def iterate(self, update: Update, state: State, max_steps: int, test: ConvergenceTest) -> tuple[State, int]:
        """Runs the iteration.

        Args:
            update: The map F.
            state: The initial state, a tensor or a pytree of floating-point tensors.
            max_steps: Most applications of ``update``, at least 0.
            test: Observes iterates; its ``residual`` is what ``Looks`` says when to look at. The last step has to be
                observed, unless ``followed`` says that more steps come after it. A solver that knows that all samples
                have converged says so by ``settled``.

        Returns:
            The last iterate and how many times ``update`` was applied.
        """
