"""Finding, checking and downloading data files."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from torch.hub import download_url_to_file

from rbp_lightning.errors import UserError


def data_directory(data_dir: str | None) -> Path:
    """The folder that data files are looked for in.

    Args:
        data_dir: A folder, or ``None`` for the environment variable ``RBP_DATA_DIR`` or else ``data``.
    """
    return Path(data_dir or os.environ.get("RBP_DATA_DIR") or "data")


def obtain(name: str, sha256: str, folders: Sequence[Path], urls: Iterable[str]) -> Path:
    """Finds a file in one of some folders, or downloads it into the first, and checks it.

    A download is complete and checked before it gets its name, so that nothing half-written can be found later.

    Args:
        name: The file's name.
        sha256: Its SHA-256 sum, in hexadecimal.
        folders: Where to look.
        urls: Addresses of folders to download it from, tried in turn.

    Returns:
        The file's path.

    Raises:
        UserError: If the file is nowhere to be had, or has another sum.
    """
    for folder in folders:
        path = folder / name
        if path.is_file():
            if hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
                raise UserError(f"{path} is corrupt (its SHA-256 is not {sha256}): replace it, or delete it.")
            return path
    path = folders[0] / name
    for url in urls:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            download_url_to_file(f"{url}/{name}", str(path), hash_prefix=sha256, progress=False)
        except (OSError, RuntimeError):
            continue
        return path
    raise UserError(
        f"{name} is in none of {', '.join(str(folder) for folder in folders)} and could not be downloaded: put it "
        f"into {folders[0]}, or set data_dir or RBP_DATA_DIR to a folder that has it."
    )
