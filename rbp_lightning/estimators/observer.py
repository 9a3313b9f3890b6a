"""Observing the solves of estimators."""

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
    """Observes a solve with gradients enabled, of any estimator, and changes nothing.

    Attributes:
        record: Whether the residual of every step is wanted, in ``FixedPoint.history``.

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
        """After the solve.

        Args:
            fixed_point: The result.
            operator: The Jacobian at the last step, which is on the tape; 0 for a sample that is frozen.
        """

    def on_gradient(self, gradient: Vector) -> None:
        """In the backward pass, when the gradient arrives at the fixed point.

        Args:
            gradient: Leaves of g.
        """

    def on_adjoint(self, solution: LinearSolution) -> None:
        """In the backward pass, once the adjoint equation was solved.

        Args:
            solution: How. Its residual is measured; of ``TBPTT`` and ``BPTT`` it is the last term's share of g.
        """


MakeObserver: TypeAlias = Callable[[], SolveObserver]
"""Makes the observer of one solve: a class, or a function without arguments."""

_makers: ContextVar[tuple[MakeObserver, ...]] = ContextVar("makers", default=())


def observers_of_solve() -> list[SolveObserver]:
    """Makes the observers of a solve that begins."""
    return [check_instance(observing, "make()", make(), SolveObserver, "what makes one") for make in _makers.get()]


def start_observing(make: MakeObserver) -> object:
    """Has the solves from here on observed; returns the token that ``stop_observing`` takes.

    Args:
        make: Makes the observer of each.

    Raises:
        UserError: If it is no class or function.
    """
    if not callable(make):
        raise UserError(f"observing: make={make!r} makes no observers: pass a SolveObserver's class, or a function.")
    return _makers.set((*_makers.get(), make))


def stop_observing(token: object) -> None:
    """Ends what ``start_observing`` began."""
    _makers.reset(token)  # type: ignore[arg-type]


@contextmanager
def observing(make: MakeObserver) -> Iterator[None]:
    """Context in which solves are observed.

    Args:
        make: Makes the observer of each.

    Raises:
        UserError: If it is no class or function.
    """
    token = start_observing(make)
    try:
        yield
    finally:
        stop_observing(token)


@contextmanager
def not_observing() -> Iterator[None]:
    """Context in which solves are not observed."""
    token = _makers.set(())
    try:
        yield
    finally:
        stop_observing(token)
