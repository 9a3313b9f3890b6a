"""Reports failures of solves to the active failure handler, at a line of the user's code."""

import sys
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from types import FrameType
from typing import Literal, NamedTuple, Protocol, TypeAlias

from torch import Tensor

from rbp_lightning.agreement import Sharing, current_sharing, in_sharing, is_reporting_process
from rbp_lightning.errors import ConvergenceWarning, check_instance
from rbp_lightning.failures import Failure

Action: TypeAlias = Literal["ignore", "warn", "raise", "skip"]
"""The reaction to a failure."""


class Place(NamedTuple):
    """A line of the user's code.

    Attributes:
        filename: Its file.
        lineno: Its line number.
    """

    filename: str
    lineno: int


class FailureHandler(Protocol):
    """Decides what happens when a solve goes wrong; ``FailurePolicy`` is one."""

    truncation_tol: float

    def action(self, failure: Failure) -> Action:
        """The reaction to a kind of failure."""

    def warn(self, failure: Failure, text: str, place: Place) -> None:
        """Issues a warning of a failure; the handler may suppress repeated ones."""

    def handle(self, failure: Failure, text: str, place: Place, parameters: Iterable[Tensor] | None) -> None:
        """Acts on a failure.

        Args:
            failure: The kind of failure.
            text: What happened and what to do, in one line.
            place: The line of the user's code.
            parameters: The parameters whose gradient is wrong; ``None`` for all.
        """


class WarnOncePerLine:
    """Warns of each kind of failure once per line of the user's code, as Python does for identical warnings.

    It is the default handler, used without a ``FailurePolicy``.
    """

    truncation_tol = 0.1

    def __init__(self) -> None:
        self._warned: set[tuple[Failure, Place]] = set()

    def action(self, failure: Failure) -> Action:
        """Always ``"warn"``."""
        return "warn"

    def warn(self, failure: Failure, text: str, place: Place) -> None:
        """Warns of the first failure of this kind at this line."""
        if (failure, place) not in self._warned or _every_warning_wanted():
            self._warned.add((failure, place))
            warn_at(place, text)

    def handle(self, failure: Failure, text: str, place: Place, parameters: Iterable[Tensor] | None) -> None:
        """Warns of the first failure of this kind at this line."""
        self.warn(failure, text, place)


class SolveContext(NamedTuple):
    """The failure handler of a solve and the line that called it, which its backward pass uses as well.

    Attributes:
        handler: The failure handler.
        place: The line of the user's code.
        sharing: The processes that share the solve; ``None`` for this process alone.
    """

    handler: FailureHandler
    place: Place
    sharing: Sharing | None = None


_DEFAULT = WarnOncePerLine()
_handlers: ContextVar[tuple[FailureHandler, ...]] = ContextVar("handlers", default=(_DEFAULT,))
_context: ContextVar[SolveContext | None] = ContextVar("context", default=None)

_SKIPPED = ("rbp_lightning", "torch", "lightning", "contextlib")


def current_context() -> SolveContext:
    """The active handler and the line of the user's code that is being run."""
    return _context.get() or SolveContext(_handlers.get()[-1], user_place(), current_sharing())


@contextmanager
def in_context(context: SolveContext) -> Iterator[None]:
    """Restores the context of a solve, such as in its backward pass, which may run in another thread."""
    token = _context.set(context)
    try:
        with in_sharing(context.sharing):
            yield
    finally:
        _context.reset(token)


def push_handler(handler: FailureHandler) -> None:
    """Makes a handler the active one of this thread."""
    _handlers.set((*_handlers.get(), handler))


def pop_handler(handler: FailureHandler) -> None:
    """Removes a handler, so that the previous one is active again."""
    handlers = _handlers.get()
    for index in reversed(range(len(handlers))):
        if handlers[index] is handler:
            _handlers.set(handlers[:index] + handlers[index + 1 :])
            return


def action(failure: Failure) -> Action:
    """The active handler's reaction to a kind of failure."""
    return current_context().handler.action(failure)


def report(failure: Failure, what: str, parameters: Iterable[Tensor] | None = None) -> None:
    """Passes a failure to the active handler.

    Args:
        failure: The kind of failure.
        what: What happened, with numbers: one sentence without a full stop.
        parameters: The parameters whose gradient is wrong; ``None`` for all.

    Raises:
        ConvergenceError: If the policy is to raise.
    """
    context = current_context()
    if context.sharing is not None:
        parameters = None  # the graph holds gathered parameters, and the optimiser only their shards
    context.handler.handle(failure, f"{what}; {failure.message}.", context.place, parameters)


def notify(failure: Failure, what: str) -> None:
    """Warns of a failure for which there was a fallback, unless the policy is to ignore it.

    Args:
        failure: The kind of failure.
        what: What happened: one sentence without a full stop.
    """
    context = current_context()
    if context.handler.action(failure) != "ignore":
        context.handler.warn(failure, f"{what}; {failure.message}.", context.place)


class _Ignoring:
    """Ignores some kinds of failure, and passes the others on."""

    def __init__(self, handler: FailureHandler, failures: frozenset[Failure]) -> None:
        self._inner, self._failures = handler, failures
        self.truncation_tol = handler.truncation_tol

    def action(self, failure: Failure) -> Action:
        return "ignore" if failure in self._failures else self._inner.action(failure)

    def warn(self, failure: Failure, text: str, place: Place) -> None:
        if failure not in self._failures:
            self._inner.warn(failure, text, place)

    def handle(self, failure: Failure, text: str, place: Place, parameters: Iterable[Tensor] | None) -> None:
        if failure not in self._failures:
            self._inner.handle(failure, text, place, parameters)


@contextmanager
def ignoring(*failures: Failure) -> Iterator[None]:
    """Context manager in which some kinds of failure are not reported, also in the backward pass of its solves.

    Args:
        failures: The kinds of failure; all if none is given.

    Raises:
        UserError: If an argument is not a ``Failure``.
    """
    for failure in failures:
        check_instance(ignoring, "failures", failure, Failure, "kinds such as Failure.NOT_CONVERGED")
    handler = _Ignoring(_handlers.get()[-1], frozenset(failures or Failure))
    push_handler(handler)
    try:
        yield
    finally:
        pop_handler(handler)


def warn_at(place: Place, text: str) -> None:
    """Warns of a failure at a line of the user's code, in only one of the processes that share the solve."""
    if is_reporting_process():
        warnings.warn_explicit(text, ConvergenceWarning, place.filename, place.lineno)


def user_place() -> Place:
    """The innermost line on the stack that is outside this library, PyTorch and Lightning."""
    frame = sys._getframe(1)
    while frame.f_back is not None and not is_user_frame(frame):
        frame = frame.f_back
    return Place(frame.f_code.co_filename, frame.f_lineno)


def is_user_frame(frame: FrameType) -> bool:
    """Whether a frame of the stack is outside this library, PyTorch and Lightning."""
    return frame.f_globals.get("__name__", "").partition(".")[0] not in _SKIPPED


def _every_warning_wanted() -> bool:
    """Whether the first matching warning filter shows every warning, or turns it into an error."""
    actions = (one[0] for one in warnings.filters if issubclass(ConvergenceWarning, one[2]) and one[1] is None)
    return next(actions, "default") in ("always", "all", "error")
