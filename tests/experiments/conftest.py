"""Fixtures for the data, and for a process in the checkout without command-line arguments."""

import sys
from pathlib import Path

import pytest

from tests.benchmarks.conftest import cora, no_data

__all__ = ["cora", "no_data"]

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def in_checkout(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in the checkout, for paths of configs, and hides pytest's arguments from Lightning."""
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["experiments"])
