"""Failures that are reported, kept for a test to look at."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

from torch import Tensor

from rbp_lightning.failures import Failure
from rbp_lightning.reporting import Action, Place, pop_handler, push_handler


class _Keeping:
    truncation_tol = 0.1

    def __init__(self) -> None:
        self.told: list[Failure] = []

    def action(self, failure: Failure) -> Action:
        return "warn"

    def warn(self, failure: Failure, text: str, place: Place) -> None:
        self.told.append(failure)

    def handle(self, failure: Failure, text: str, place: Place, parameters: Iterable[Tensor] | None) -> None:
        self.told.append(failure)


@contextmanager
def telling() -> Iterator[list[Failure]]:
    """Context that gives the kinds of the failures reported in it."""
    handler = _Keeping()
    push_handler(handler)
    try:
        yield handler.told
    finally:
        pop_handler(handler)
