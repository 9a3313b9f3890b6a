"""Finding and reading CIFAR-10's binary files (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import math
import os
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.files import data_directory, obtain, read_bytes, reading

ARCHIVE = "cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
URLS = ("https://www.cs.toronto.edu/~kriz",)

FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
"""The image files of the archive; the test file is last."""

FOLDER = "cifar-10-batches-bin"
"""The folder of these files in the archive."""

SHAPE = 3, 32, 32
ROW = 1 + math.prod(SHAPE)
"""The number of bytes of an image with its label."""

IMAGES = 10_000
"""The number of images of a published file."""


def cifar_files(data_dir: str | None) -> Path:
    """Finds the archive of CIFAR-10's binary files or else the unpacked folder, or downloads the archive.

    Args:
        data_dir: A folder that holds one of them, or holds it in ``cifar10``; ``None`` for the environment variable
            ``RBP_DATA_DIR`` or else ``data``.

    Raises:
        UserError: If both are missing and the archive cannot be downloaded, or it is corrupt.
    """
    folder = data_directory(data_dir)
    folders = [folder / "cifar10", folder]
    if not any(os.path.lexists(one / ARCHIVE) for one in folders):
        for one in folders:
            if (one / FOLDER).is_dir():
                return one / FOLDER
    (path,) = obtain({ARCHIVE: SHA256}, folders, URLS)
    return path


def read_cifar(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """Reads the image files, which have rows of a label and the pixels of an image, colour by colour.

    Those of a folder are not compared with a checksum, but must have the size of the published ones.

    Args:
        path: The archive or the unpacked folder.

    Returns:
        The images, of shape ``[n, 3, 32, 32]``, their labels, of shape ``[n]``, and the number of test images, which
        come last.

    Raises:
        UserError: If it is neither.
    """
    kind, contents = ("a folder", _unpacked) if path.is_dir() else ("an archive", _archived)
    with reading(path, f"{kind} of CIFAR-10's binary files"):
        rows = [np.frombuffer(content, np.uint8).reshape(-1, ROW) for content in contents(path)]
    joined = np.concatenate(rows)
    return joined[:, 1:].reshape(-1, *SHAPE), joined[:, 0], len(rows[-1])


def _archived(path: Path) -> list[bytes]:
    contents = []
    with tarfile.open(path, "r:gz") as archive:
        for name in FILES:
            file = archive.extractfile(f"{FOLDER}/{name}")
            if file is None:
                raise ValueError(f"its {name} is not a file")
            contents.append(file.read())
    return contents


def _unpacked(path: Path) -> list[bytes]:
    for name in FILES:
        if not (path / name).is_file() or (path / name).stat().st_size != IMAGES * ROW:
            raise ValueError(f"its {name} is missing or does not have {IMAGES * ROW} bytes")
    return [read_bytes(path / name) for name in FILES]
