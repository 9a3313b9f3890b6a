"""Fixtures: where the data are, or that there are none; and what memory is measured beside."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture
def no_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty data folder, and no network to fill it from."""
    monkeypatch.setenv("RBP_DATA_DIR", str(tmp_path / "empty"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")


@pytest.fixture
def cora(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The real files of Cora."""
    monkeypatch.setenv("RBP_DATA_DIR", data_dir)


@pytest.fixture(scope="module")
def fewer_objects() -> Iterator[None]:
    """Keeps the collections of garbage from going through all that tests have loaded."""
    gc.freeze()
    yield
    gc.unfreeze()
