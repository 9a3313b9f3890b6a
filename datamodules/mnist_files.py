"""MNIST's files: where they are and how they are read (http://yann.lecun.com/exdb/mnist/, "file formats")."""

import gzip
import zlib
from pathlib import Path

import numpy as np

from datamodules.files import data_directory, obtain
from rbp_lightning.errors import UserError

SHA256 = {
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
    "train-images-idx3-ubyte.gz": "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
    "train-labels-idx1-ubyte.gz": "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
}

URLS = ("https://ossci-datasets.s3.amazonaws.com/mnist", "https://storage.googleapis.com/cvdf-datasets/mnist")


def mnist_file(name: str, data_dir: str | None) -> Path:
    """Finds one of MNIST's files, or downloads it.

    Args:
        name: A key of ``SHA256``.
        data_dir: A folder that holds the files, or holds them in ``mnist/raw`` or ``MNIST/raw``; ``None`` is the
            environment variable ``RBP_DATA_DIR`` or else ``data``.

    Raises:
        UserError: If the file is nowhere to be had, or is corrupt.
    """
    folder = data_directory(data_dir)
    folders = [folder / "mnist" / "raw", folder / "MNIST" / "raw", folder]
    return obtain({name: SHA256[name]}, folders, URLS)[0]


def read_idx(path: Path) -> np.ndarray:
    """Reads a gzipped IDX file of unsigned bytes.

    Args:
        path: The file.

    Returns:
        Its array, uint8.

    Raises:
        UserError: If it is not such a file, or is truncated.
    """
    try:
        content = gzip.decompress(path.read_bytes())
        if content[:3] != b"\x00\x00\x08":
            raise ValueError("its header is not that of unsigned bytes")
        dims = content[3]
        shape = np.frombuffer(content, ">u4", dims, offset=4).astype(int)
        return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, ValueError, IndexError, zlib.error) as error:
        raise UserError(f"{path} is not a gzipped IDX file ({error}): replace it.") from error
