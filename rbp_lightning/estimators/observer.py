"""Observers of the solves of estimators."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeAlias

from rbp_lightning.errors import UserError, check_instance
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.linear.base import LinearSolution
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector


class SolveObserver:
    """Base class of observers of one solve with gradients enabled, by any estimator. Override the hooks as needed.

    Attributes:
        record: Whether to record the residual of every step in ``FixedPoint.history``.

    Example:
        >>> class Gradients(SolveObserver):
        ...     def on_gradient(self, gradient):
        ...         print(gradient)
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> with observing(Gradients):
        ...     state = NeumannRBP()(lambda h: weight * h + 1, torch.zeros(())).state
        >>> state.backward()
        (tensor(1.),)
    """

    record = False

    def on_solve_end(self, fixed_point: FixedPoint, operator: JacobianOperator) -> None:
        """Called after the solve.

        Args:
            fixed_point: The result.
            operator: The Jacobian at the last recorded step; 0 for a frozen sample.
        """

    def on_gradient(self, gradient: Vector) -> None:
        """Called in the backward pass, when the gradient reaches the fixed point.

        Args:
            gradient: Leaves of g.
        """

    def on_adjoint(self, solution: LinearSolution) -> None:
        """Called in the backward pass, after the adjoint equation was solved.

        Args:
            solution: The adjoint solution, with its true residual; for ``TBPTT`` and ``BPTT``, with
                ||last term|| / ||g|| as the residual.
        """


MakeObserver: TypeAlias = Callable[[], SolveObserver]
"""Creates the observer of one solve: a class, or a function without arguments."""

_makers: ContextVar[tuple[MakeObserver, ...]] = ContextVar("makers", default=())


def observers_of_solve() -> list[SolveObserver]:
    """Creates the observers of a new solve."""
    remedy = "a class or function that returns one"
    return [check_instance(observing, "make()", make(), SolveObserver, remedy) for make in _makers.get()]


def start_observing(make: MakeObserver) -> object:
    """Starts to observe solves; returns the token for ``stop_observing``.

    Args:
        make: Creates the observer of each solve.

    Raises:
        UserError: If ``make`` is not a class or function.
    """
    if not callable(make):
        raise UserError(
            f"observing: make={make!r} does not create observers: pass a SolveObserver class, or a function that "
            "returns an observer."
        )
    return _makers.set((*_makers.get(), make))


def stop_observing(token: object) -> None:
    """Ends the effect of ``start_observing``."""
    _makers.reset(token)  # type: ignore[arg-type]


@contextmanager
def observing(make: MakeObserver) -> Iterator[None]:
    """Context manager in which solves are observed.

    Args:
        make: Creates the observer of each solve: a class, or a function without arguments.

    Raises:
        UserError: If ``make`` is not a class or function.
    """
    token = start_observing(make)
    try:
        yield
    finally:
        stop_observing(token)


@contextmanager
def not_observing() -> Iterator[None]:
    """Context manager in which solves are not observed."""
    token = _makers.set(())
    try:
        yield
    finally:
        stop_observing(token)
