"""Fixtures: where the real data files are."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir() -> str:
    """The folder of real data files; tests that want it skip where there is none."""
    folder = Path(os.environ.get("RBP_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data")
    if not (folder / "mnist" / "raw" / "train-images-idx3-ubyte.gz").is_file():
        pytest.skip(f"no MNIST files in {folder}: set RBP_DATA_DIR to a folder that has mnist/raw")
    return str(folder)
