"""Where grey images come from: scikit-learn's digits, MNIST, or a folder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from sklearn.datasets import load_digits

from datamodules.mnist_files import mnist_file, read_idx
from rbp_lightning.errors import UserError

GreyImages = NDArray[np.float32]
"""Intensities, 0 to 1, of shape [n, height, width]."""


def one_of_each_class(labels: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """Chooses examples class by class: the first of each, then the second of each, and so on.

    Args:
        labels: Class of each example.
        count: How many to choose.

    Returns:
        Their indices.

    Example:
        >>> one_of_each_class(np.array([1, 1, 0, 0]), 3).tolist()
        [2, 0, 3]
    """
    rank_in_class = np.zeros(len(labels), dtype=int)
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        rank_in_class[members] = np.arange(len(members))
    return np.lexsort((labels, rank_in_class))[:count]


def digits_images(count: int) -> GreyImages:
    """Loads 8 x 8 digits from scikit-learn, which bundles them.

    Args:
        count: How many, classes in turn.
    """
    digits = load_digits()
    images: GreyImages = (digits.images / 16).astype(np.float32)
    return images[one_of_each_class(digits.target, count)]


MNIST_FILES = ("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz")


def mnist_images(count: int, data_dir: str | None) -> GreyImages:
    """Loads 28 x 28 digits from MNIST's training set.

    Args:
        count: How many, classes in turn.
        data_dir: Folder of the files, as ``mnist_file`` takes it.

    Raises:
        UserError: If a file is missing or corrupt.
    """
    images, labels = (read_idx(mnist_file(name, data_dir)) for name in MNIST_FILES)
    return (images[one_of_each_class(labels, count)] / 255).astype(np.float32)


def folder_images(folder: str, count: int, size: int) -> GreyImages:
    """Loads the first image files of a folder by name, as grey images of one size.

    Args:
        folder: The folder; what Pillow can open there is an image, whatever its format.
        count: How many.
        size: Height and width they are resized to.

    Raises:
        UserError: If the folder is missing, or a file in it is no image or is truncated.
    """
    if not Path(folder).is_dir():
        raise UserError(f"ImagePatterns: data_dir={folder!r} is not a folder: name one that holds image files.")
    files = sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))
    images = []
    for path in files[:count]:
        try:
            with Image.open(path) as image:
                if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
                    raise OSError(f"its mode is {image.mode}; 8-bit grey or RGB is wanted")
                if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                    raise OSError("it has transparent pixels; 8-bit grey or RGB is wanted")
                images.append(np.asarray(image.convert("L").resize((size, size)), dtype=np.float32) / 255)
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{path} cannot be read as an image ({error}): replace it or take it away.") from error
    return np.stack(images) if images else np.empty((0, size, size), dtype=np.float32)
