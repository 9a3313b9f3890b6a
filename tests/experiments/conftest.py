"""Fixtures: where the data are, or that there are none, and a process without command-line arguments."""

import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import cora, no_data

__all__ = ["cora", "no_data"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths of configs are those of a checkout, and pytest's own arguments are not Lightning's."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["experiments"])
