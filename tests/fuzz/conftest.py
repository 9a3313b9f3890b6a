"""How many cases an attack tries, and what it found, in figures."""

import os
from collections.abc import Callable, Iterator

import pytest

_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def cases() -> Callable[[int, int], int]:
    """Chooses between the number of cases of a short run and that of ``make fuzz``, which sets ``RBP_FUZZ=long``."""
    return lambda short, long: long if os.environ.get("RBP_FUZZ") == "long" else short


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    """Takes what an attack counted; the end of the run prints it."""
    found: dict[str, object] = {}
    yield found
    line = f"{request.node.name}: " + ", ".join(f"{value} {name}" for name, value in found.items())
    request.config.stash.setdefault(_FIGURES, []).append(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the figures; a parallel run has them in its workers, where nobody prints them."""
    for line in config.stash.get(_FIGURES, []):
        terminalreporter.write_line(line)
