"""Fixtures for the number of cases of a fuzz test, and for its counts."""

import os
from collections.abc import Callable, Iterator

import pytest

_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def cases() -> Callable[[int, int], int]:
    """Selects the number of cases of a short run, or that of ``make fuzz``, which sets ``RBP_FUZZ=long``."""
    return lambda short, long: long if os.environ.get("RBP_FUZZ") == "long" else short


@pytest.fixture
def figures(request: pytest.FixtureRequest) -> Iterator[dict[str, object]]:
    """Collects the counts of a test, which are printed at the end of the run."""
    found: dict[str, object] = {}
    yield found
    line = f"{request.node.name}: " + ", ".join(f"{value} {name}" for name, value in found.items())
    request.config.stash.setdefault(_FIGURES, []).append(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Prints the counts; not those of parallel workers, which print nothing."""
    for line in config.stash.get(_FIGURES, []):
        terminalreporter.write_line(line)
