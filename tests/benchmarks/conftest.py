"""Fixtures for the data and for measurements of memory."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty data folder and no network."""
    monkeypatch.setenv("RBP_DATA_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


@pytest.fixture
def cora(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real files of Cora."""
    monkeypatch.setenv("RBP_DATA_DIR", data_dir)


@pytest.fixture(scope="module")
def fewer_objects() -> Iterator[None]:
    """Excludes the objects of earlier tests from garbage collection, which would be slow."""
    gc.freeze()
    yield
    gc.unfreeze()
