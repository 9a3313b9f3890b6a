"""Finding and reading CIFAR-10's binary files (https://www.cs.toronto.edu/~kriz/cifar.html)."""

import math
import tarfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.files import data_directory, obtain, reading

ARCHIVE = "cifar-10-binary.tar.gz"
SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
URLS = ("https://www.cs.toronto.edu/~kriz",)

FILES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
"""The image files of the archive; the test file is last."""

SHAPE = 3, 32, 32


def cifar_archive(data_dir: str | None) -> Path:
    """Finds the archive of CIFAR-10's binary files, or downloads it.

    Args:
        data_dir: A folder that holds it, or holds it in ``cifar10``; ``None`` for the environment variable
            ``RBP_DATA_DIR`` or else ``data``.

    Raises:
        UserError: If it is missing and cannot be downloaded, or is corrupt.
    """
    folder = data_directory(data_dir)
    (path,) = obtain({ARCHIVE: SHA256}, [folder / "cifar10", folder], URLS)
    return path


def read_cifar(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8], int]:
    """Reads the archive, whose files have rows of a label and the pixels of an image, colour by colour.

    Args:
        path: The archive.

    Returns:
        The images, of shape ``[n, 3, 32, 32]``, their labels, of shape ``[n]``, and the number of test images, which
        come last.

    Raises:
        UserError: If it is not such an archive.
    """
    rows = []
    with reading(path, "an archive of CIFAR-10's binary files"), tarfile.open(path, "r:gz") as archive:
        for name in FILES:
            file = archive.extractfile(f"cifar-10-batches-bin/{name}")
            if file is None:
                raise ValueError(f"its {name} is not a file")
            rows.append(np.frombuffer(file.read(), np.uint8).reshape(-1, 1 + math.prod(SHAPE)))
    joined = np.concatenate(rows)
    return joined[:, 1:].reshape(-1, *SHAPE), joined[:, 0], len(rows[-1])
