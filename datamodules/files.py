"""Finding, checking, downloading and reading data files."""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pooch

from rbp_lightning.errors import UserError

MOST_BYTES = 2**30
"""A data file may have no more bytes than these, neither on disk nor decompressed."""


def data_directory(data_dir: str | None) -> Path:
    """Returns the folder in which data files are looked for.

    Args:
        data_dir: A folder, or ``None`` for the environment variable ``RBP_DATA_DIR`` or else ``data``.

    Raises:
        UserError: If it cannot be the name of a folder.
    """
    folder = Path(data_dir or os.environ.get("RBP_DATA_DIR") or "data")
    try:
        folder.is_dir()
    except (OSError, ValueError) as error:
        raise UserError(
            f"data_dir={str(folder)[:100]!r} cannot be a folder ({error.args[-1]}): name another."
        ) from error
    return folder


def read_bytes(path: Path, most: int = MOST_BYTES) -> bytes:
    """Reads a file whole.

    Args:
        path: The file.
        most: How many bytes it may have.

    Raises:
        UserError: If it cannot be read, has more bytes, or is no regular file: a pipe could wait for ever, and a device
            have no end.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path} is not a file: replace or remove it.")
        with path.open("rb") as file:
            content = file.read(most + 1)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({brief(error)}): replace it, or allow to read it.") from error
    if len(content) > most:
        raise UserError(f"{path} has more than {most} bytes, which is the limit: replace it by a smaller file.")
    return content


@contextmanager
def refused_unless(path: Path, kind: str) -> Iterator[None]:
    """Turns whatever goes wrong in reading a file's content into one error that names the file.

    Args:
        path: The file.
        kind: What it should be.

    Raises:
        UserError: If anything is raised within.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # damaged bytes can make readers raise anything
        raise UserError(f"{path} is not {kind} ({brief(error)}): replace or remove it.") from error


def brief(error: Exception) -> str:
    """Returns what an error says, in a line that is not longer than a line, or else its kind."""
    return " ".join(str(error).split())[:200] or type(error).__name__


def obtain(files: Mapping[str, str], folders: Sequence[Path], urls: Sequence[str]) -> list[Path]:
    """Finds files on disk, downloads the missing ones, and checks them all.

    Args:
        files: SHA-256 checksum of each file, in hexadecimal, by its name.
        folders: Where to look. The folder that has most of the files is used; the first one if none has any.
        urls: Addresses to download from, tried in turn; each is that of a folder.

    Returns:
        Paths of the files, all in one folder.

    Raises:
        UserError: If a file is missing and cannot be downloaded, cannot be read, or has another checksum.
    """
    folder = max(folders, key=lambda folder: sum(os.path.lexists(folder / name) for name in files))
    for name, sha256 in files.items():
        path = folder / name
        if os.path.lexists(path):  # a pipe or a folder is in the way of a download, too
            if hashlib.sha256(read_bytes(path)).hexdigest() != sha256:
                raise UserError(f"{path} is corrupt (its SHA-256 is not {sha256}): replace it, or delete it.")
        elif not any(_downloaded(f"{url}/{name}", path, sha256) for url in urls):
            missing = ", ".join(name for name in files if not os.path.lexists(folder / name))
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
