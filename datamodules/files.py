"""Finding, checking and downloading data files."""

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch.hub import download_url_to_file

from rbp_lightning.errors import UserError


def data_directory(data_dir: str | None) -> Path:
    """The folder that data files are looked for in.

    Args:
        data_dir: A folder, or ``None`` for the environment variable ``RBP_DATA_DIR`` or else ``data``.
    """
    return Path(data_dir or os.environ.get("RBP_DATA_DIR") or "data")


def obtain(files: Mapping[str, str], folders: Sequence[Path], urls: Sequence[str]) -> list[Path]:
    """Finds files in that of some folders which has most of them, downloads those that are missing, and checks all.

    A download is complete and checked before it gets its name, so that nothing half-written can be found later.

    Args:
        files: SHA-256 sum, in hexadecimal, of each file by its name.
        folders: Where to look; where none of them has a file, they are downloaded into the first.
        urls: Addresses of folders to download from, tried in turn.

    Returns:
        The files' paths, all in one folder.

    Raises:
        UserError: If a file is nowhere to be had, or has another sum.
    """
    folder = max(folders, key=lambda folder: sum((folder / name).is_file() for name in files))  # the first of equals
    for name, sha256 in files.items():
        path = folder / name
        if path.is_file():
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                raise UserError(f"{path} is corrupt (its SHA-256 is not {sha256}): replace it, or delete it.")
        elif not any(_downloaded(f"{url}/{name}", path, sha256) for url in urls):
            missing = ", ".join(name for name in files if not (folder / name).is_file())
            raise UserError(
                f"Missing {missing}: not found in {', '.join(str(folder) for folder in folders)}, and could not "
                f"be downloaded. Put what is missing into {folder}, or set data_dir or RBP_DATA_DIR to a folder that "
                "has all of it."
            )
    return [folder / name for name in files]


def _downloaded(url: str, path: Path, sha256: str) -> bool:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        download_url_to_file(url, str(path), hash_prefix=sha256, progress=False)
    except (OSError, RuntimeError):
        return False
    return True
