"""Fixtures for the real data files and for the command line, in this process or another."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runs import Zygote


@pytest.fixture(scope="session")
def data_dir(tmp_path_factory) -> str:
    """A folder with links to the real data files, so that caches are written there; skips without the files."""
    folder = Path(os.environ.get("RBP_DATA_DIR") or Path(__file__).parents[2] / "shared" / "data").absolute()
    for name in ("mnist/raw/train-images-idx3-ubyte.gz", "planetoid/raw/ind.pubmed.allx"):
        if not (folder / name).is_file():
            pytest.skip(f"no {name} in {folder}: set RBP_DATA_DIR to a folder that has mnist/raw and planetoid/raw")
    links = tmp_path_factory.mktemp("data")
    for name in ("mnist", "planetoid"):
        (links / name).symlink_to(folder / name)
    return str(links)


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """Starts programs in separate processes."""
    zygote = Zygote()
    yield zygote
    zygote.end()


@pytest.fixture
def cli(tmp_path, monkeypatch, capfd):
    """Runs the command line in this process; returns the exit status and what was printed."""
    # Imported here because they are slow to import and the controller process of pytest-xdist does not need them.
    import datamodules  # noqa: F401  # as in train.py
    import models  # noqa: F401
    from rbp_lightning.cli import console

    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> tuple[int, str, str]:
        status: Any = 0
        try:
            console([str(argument) for argument in arguments])
        except SystemExit as stop:
            status = stop.code
        printed = capfd.readouterr()
        return status or 0, printed.out, printed.err

    return run
