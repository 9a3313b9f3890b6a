"""Finding, checking and downloading data files."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import pooch

from rbp_lightning.errors import UserError


def data_directory(data_dir: str | None) -> Path:
    """Returns the folder in which data files are looked for.

    Args:
        data_dir: A folder, or ``None`` for the environment variable ``RBP_DATA_DIR`` or else ``data``.
    """
    return Path(data_dir or os.environ.get("RBP_DATA_DIR") or "data")


def obtain(files: Mapping[str, str], folders: Sequence[Path], urls: Sequence[str]) -> list[Path]:
    """Finds files on disk, downloads the missing ones, and checks them all.

    Args:
        files: SHA-256 checksum of each file, in hexadecimal, by its name.
        folders: Where to look. The folder that has most of the files is used; the first one if none has any.
        urls: Addresses to download from, tried in turn; each is that of a folder.

    Returns:
        Paths of the files, all in one folder.

    Raises:
        UserError: If a file is missing and cannot be downloaded, or has another checksum.
    """
    folder = max(folders, key=lambda folder: sum((folder / name).is_file() for name in files))
    for name, sha256 in files.items():
        path = folder / name
        if path.is_file():
            if pooch.file_hash(str(path), alg="sha256") != sha256:
                raise UserError(f"{path} is corrupt (its SHA-256 is not {sha256}): replace it, or delete it.")
        elif not any(_downloaded(f"{url}/{name}", path, sha256) for url in urls):
            missing = ", ".join(name for name in files if not (folder / name).is_file())
            tried = " and could not be downloaded" if urls else ""
            raise UserError(
                f"Missing {missing}: not found in {', '.join(str(folder) for folder in folders)}{tried}. Put what is "
                f"missing into {folder}, or set data_dir or RBP_DATA_DIR to a folder that has all of it."
            )
    return [folder / name for name in files]


def _downloaded(url: str, path: Path, sha256: str) -> bool:
    """Downloads a file under a temporary name until it is complete and checked; returns whether that worked."""
    try:
        pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=path.name, path=path.parent)
    except (OSError, ValueError):  # no network or no such file, or another checksum
        return False
    return True
