"""Where grey images come from: scikit-learn's digits, MNIST, or a folder."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from sklearn.datasets import load_digits

from datamodules.mnist_files import TRAINING_FILES, labelled_images, mnist_files
from rbp_lightning.errors import UserError

GreyImages = NDArray[np.float32]
"""Intensities, 0 to 1, of shape [n, height, width]."""


def balanced_choice(labels: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Chooses examples from all classes in turn: the first of each class, then the second of each, and so on.

    Args:
        labels: Class of each example.
        count: How many to choose.

    Returns:
        Their indices.

    Example:
        >>> balanced_choice(np.array([1, 1, 0, 0]), 3).tolist()
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
        count: How many, from all classes in turn.
    """
    digits = load_digits()
    images: GreyImages = (digits.images / 16).astype(np.float32)
    return images[balanced_choice(digits.target, count)]


def mnist_images(count: int, data_dir: str | None) -> GreyImages:
    """Loads 28 x 28 digits from MNIST's training set.

    Args:
        count: How many, from all classes in turn.
        data_dir: Folder of the files, as for ``mnist_files``.

    Raises:
        UserError: If a file is missing or corrupt.
    """
    images, labels = labelled_images(*mnist_files(TRAINING_FILES, data_dir))
    return (images[balanced_choice(labels, count)] / 255).astype(np.float32)


def folder_images(folder: str, count: int, size: int) -> GreyImages:
    """Loads the first image files of a folder, by name, as grey images of one size.

    Args:
        folder: The folder. Its files may have any format that Pillow can open.
        count: How many.
        size: Height and width that they are resized to.

    Raises:
        UserError: If the folder is missing, or a file in it is no image or is truncated.
    """
    if not Path(folder).is_dir():
        raise UserError(f"ImagePatterns: data_dir={folder!r} is not a folder: name one that holds image files.")
    files = sorted(path for path in Path(folder).iterdir() if path.is_file() and not path.name.startswith("."))
    images = []
    for path in files[:count]:
        try:
            images.append(_grey_image(path, size))
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
            raise UserError(f"{path} cannot be read as an image ({error}): replace or remove it.") from error
    return np.stack(images) if images else np.empty((0, size, size), dtype=np.float32)


def _grey_image(path: Path, size: int) -> NDArray[np.float32]:
    with Image.open(path) as image:
        if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
            raise OSError(f"its mode is {image.mode}; 8-bit grey or RGB is wanted")
        if image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise OSError("it has transparent pixels; 8-bit grey or RGB is wanted")
        upright = ImageOps.exif_transpose(image)  # cameras store how they were held instead of turning the pixels
        return np.asarray(upright.convert("L").resize((size, size)), dtype=np.float32) / np.float32(255)
