"""Fixtures: where the real data files are."""

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    """A folder with links to the real data files, for caches to be beside; tests skip where there are no files."""
    folder = Path(os.environ.get("RBP_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data").absolute()
    for name in ("mnist/raw/train-images-idx3-ubyte.gz", "planetoid/raw/ind.pubmed.allx"):
        if not (folder / name).is_file():
            pytest.skip(f"no {name} in {folder}: set RBP_DATA_DIR to a folder that has mnist/raw and planetoid/raw")
    links = tmp_path_factory.mktemp("data")
    for name in ("mnist", "planetoid"):
        (links / name).symlink_to(folder / name)
    return str(links)
