"""Finding, checking, downloading and reading data files."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pooch

from rbp_lightning.errors import UserError

MAX_BYTES = 2**30
"""The most bytes of a data file, on disk or decompressed."""


def data_directory(data_dir: str | None) -> Path:
    """Returns the folder to search for data files.

    Args:
        data_dir: A folder, or ``None`` for the environment variable ``RBP_DATA_DIR`` or else ``data``.

    Raises:
        UserError: If the name cannot be that of a folder.
    """
    folder = Path(data_dir or os.environ.get("RBP_DATA_DIR") or "data")
    try:
        folder.is_dir()
    except (OSError, ValueError) as error:
        raise UserError(
            f"data_dir={str(folder)[:100]!r} cannot be a folder ({error.args[-1]}): use another."
        ) from error
    return folder


def read_bytes(path: Path, most: int = MAX_BYTES) -> bytes:
    """Reads a file whole.

    Args:
        path: The file.
        most: The most bytes it may have.

    Raises:
        UserError: If it cannot be read, has more bytes, or is not a regular file: reading a pipe could wait, and
            reading a device go on, for ever.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} is not a file: replace or remove it.")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({brief(error)}): replace it, or make it readable.") from error
    if len(content) > most:
        raise UserError(f"{path} has more than {most} bytes, the limit: use a smaller file.")
    return content


@contextmanager
def reading(path: Path, kind: str) -> Iterator[None]:
    """Turns any exception while reading a file's content into an error that names the file.

    Args:
        path: The file.
        kind: What the file should be.

    Raises:
        UserError: In place of any exception raised within.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged bytes can make readers raise anything
        raise UserError(f"{path} is not {kind} ({brief(error)}): replace or remove it.") from error


def brief(error: Exception) -> str:
    """Returns an error's message in one short line, or its type if it has none."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def obtain(files: Mapping[str, str], folders: Sequence[Path], urls: Sequence[str]) -> list[Path]:
    """Finds files on disk, downloads the missing ones, and checks them all.

    Args:
        files: The SHA-256 checksum of each file, in hexadecimal, by file name.
        folders: The folders to search. The one with most of the files is used, or the first if none has any.
        urls: Addresses of folders to download from, tried in turn.

    Returns:
        The paths of the files, all in one folder.

    Raises:
        UserError: If a file is missing and cannot be downloaded, cannot be read, or has another checksum.
    """
    folder = max(folders, key=lambda folder: sum(os.path.lexists(folder / name) for name in files))
    for name, sha256 in files.items():
        path = folder / name
        if os.path.lexists(path):  # also a pipe or a folder, which would block a download
            if hashlib.sha256(read_bytes(path)).hexdigest() != sha256:
                raise UserError(f"{path} is corrupt (its SHA-256 is not {sha256}): replace it, or delete it.")
        elif not any(_download(f"{url}/{name}", path, sha256) for url in urls):
            missing = ", ".join(name for name in files if not os.path.lexists(folder / name))
            tried = " and could not be downloaded" if urls else ""
            raise UserError(
                f"Missing {missing}: not found in {', '.join(str(folder) for folder in folders)}{tried}. Put what is "
                f"missing into {folder}, or set data_dir or RBP_DATA_DIR to a folder that has all of it."
            )
    return [folder / name for name in files]


def _download(url: str, path: Path, sha256: str) -> bool:
    """Downloads a file, under a temporary name until its checksum is verified; returns whether it succeeded."""
    try:
        pooch.retrieve(url, known_hash=f"sha256:{sha256}", fname=path.name, path=path.parent)
    except (OSError, ValueError):  # no network, no such file, or a wrong checksum
        return False
    return True
