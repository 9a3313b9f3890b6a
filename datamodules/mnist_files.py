"""Finding and reading MNIST's files (http://yann.lecun.com/exdb/mnist/, "file formats")."""

import gzip
import io
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodules.files import MAX_BYTES, data_directory, obtain, read_bytes, reading
from rbp_lightning.errors import UserError

TRAINING_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")
TEST_FILES = ("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz")
ORDER = "training images, training labels, test images, test labels"

SHA256 = {
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
}

URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")


def mnist_files(names: Sequence[str], data_dir: str | None) -> list[Path]:
    """Finds files of MNIST, or downloads them.

    Args:
        names: File names, keys of ``SHA256``.
        data_dir: A folder that holds the files, or holds them in ``mnist/raw`` or ``MNIST/raw``; ``None`` for the
            environment variable ``RBP_DATA_DIR`` or else ``data``.

    Raises:
        UserError: If a file is missing and cannot be downloaded, or is corrupt.
    """
    folder = data_directory(data_dir)
    folders = [folder / "mnist" / "raw", folder / "MNIST" / "raw", folder]
    return obtain({name: SHA256[name] for name in names}, folders, URLS)


def read_idx(path: Path) -> NDArray[np.uint8]:
    """Reads a gzipped IDX file of unsigned bytes.

    It decompresses no more than the header says, and at most ``MAX_BYTES``.

    Args:
        path: The file.

    Returns:
        The array, which is not empty.

    Raises:
        UserError: If it is not such a file, or holds less or more than its header says.
    """
    compressed = io.BytesIO(read_bytes(path))
    with reading(path, "a gzipped IDX file"), gzip.GzipFile(fileobj=compressed) as file:
        start = file.read(4)
        if start[:3] != b"\x00\x00\x08":
            raise ValueError("its header is not that of unsigned bytes")
        shape = np.frombuffer(file.read(4 * start[3]), ">u4").tolist()
        size = math.prod(shape)
        if len(shape) != start[3] or not 0 < size <= MAX_BYTES:
            raise ValueError(f"its header says {shape}; 1 to {MAX_BYTES} values can be read")
        content = file.read(size + 1)  # gzip verifies its checksum at the end
        if len(content) != size:
            raise ValueError(f"its header says {shape}, but it holds {'less' if len(content) < size else 'more'}")
        array = np.frombuffer(content, np.uint8).reshape(shape)
    return array


def labelled_images(images_path: Path, labels_path: Path) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Reads images and their labels.

    Args:
        images_path: IDX file of images, of shape ``[n, height, width]``.
        labels_path: IDX file of labels, of shape ``[n]``.

    Raises:
        UserError: If a file is malformed, or the two do not belong together.
    """
    images, labels = read_idx(images_path), read_idx(labels_path)
    for path, array, kind, dims in ((images_path, images, "images", 3), (labels_path, labels, "labels", 1)):
        if array.ndim != dims:
            raise UserError(
                f"{path} has an array of {array.ndim} dimensions, but {kind} have {dims}: give the files in the order "
                f"{ORDER}."
            )
    if len(images) != len(labels):
        raise UserError(
            f"{labels_path} has {len(labels)} labels, but {images_path} has {len(images)} images: give files that "
            "belong together."
        )
    return images, labels
