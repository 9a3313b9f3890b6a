"""Records reported failures."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from rbp_lightning.failures import Failure
from rbp_lightning.reporting import Action, Place, pop_handler, push_handler


class _Recorder:
    truncation_tol = 0.1

    def __init__(self) -> None:
        self.reported: list[Failure] = []

    def action(self, failure: Failure) -> Action:
        return "warn"

    def warn(self, failure: Failure, text: str, place: Place) -> None:
        self.reported.append(failure)

    def handle(self, failure: Failure, text: str, place: Place, parameters: Iterable[Tensor] | None) -> None:
        self.reported.append(failure)


@contextmanager
def recorded_failures() -> Iterator[list[Failure]]:
    """Context manager that returns the list of failures reported within it."""
    handler = _Recorder()
    push_handler(handler)
    try:
        yield handler.reported
    finally:
        pop_handler(handler)
