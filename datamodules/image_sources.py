"""Sources of grey images: scikit-learn's digits, MNIST, or a folder."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from sklearn.datasets import load_digits

from datamodules.files import data_directory, read_bytes, reading
from datamodules.mnist_files import TRAINING_FILES, labelled_images, mnist_files
from rbp_lightning.errors import UserError

GreyImages = NDArray[np.float32]
"""Intensities, 0 to 1, of shape [n, height, width]."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF")
"""Accepted formats of image files, by Pillow's names.

They hold pixels only; EPS, for example, is a program that Pillow would pass to Ghostscript.
"""

MAX_FILE_BYTES = 2**27
"""The most bytes of an image file."""

MAX_PIXELS = 2**25
"""The most pixels of an image file, since a small file can decode to any number of them."""

MAX_RESIZED_PIXELS = 2**28
"""The most pixels of all resized images of a folder together: 1 GiB of float32."""


def balanced_choice(labels: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """Chooses examples from all classes in turn: the first of each class, then the second of each, and so on.

    Args:
        labels: Class of each example.
        count: Number of examples to choose.

    Returns:
        The indices of the chosen examples.

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
    """Loads 8 x 8 digits, which are bundled with scikit-learn.

    Args:
        count: Number of images, from all classes in turn.
    """
    digits = load_digits()
    images: GreyImages = (digits.images / 16).astype(np.float32)
    return images[balanced_choice(digits.target, count)]


def mnist_images(count: int, data_dir: str | None) -> GreyImages:
    """Loads 28 x 28 digits from MNIST's training set.

    Args:
        count: Number of images, from all classes in turn.
        data_dir: Folder of the files, as for ``mnist_files``.

    Raises:
        UserError: If a file is missing or corrupt.
    """
    images, labels = labelled_images(*mnist_files(TRAINING_FILES, data_dir))
    return (images[balanced_choice(labels, count)] / 255).astype(np.float32)


def folder_images(folder: str, count: int, size: int) -> GreyImages:
    """Loads the first image files of a folder, by name, as grey images of one size.

    Subfolders and names that start with a dot are skipped.

    Args:
        folder: The folder, with files of the ``FORMATS``; the first image of each file is used.
        count: Number of images.
        size: Height and width to resize them to.

    Raises:
        UserError: If the folder cannot be read, or a file in it is not an image, is damaged, or has more than
            ``MAX_PIXELS`` pixels or ``MAX_FILE_BYTES`` bytes.
    """
    if not data_directory(folder).is_dir():
        raise UserError(f"ImagePatterns: data_dir={folder!r} is not a folder: give a folder of image files.")
    suffixes = Image.registered_extensions()
    with reading(Path(folder), "a folder that can be read"):
        files = sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
        files = [path for path in files if path.suffix.lower() in suffixes or not path.is_dir()]
    if len(files[:count]) * size**2 > MAX_RESIZED_PIXELS:
        raise UserError(
            f"ImagePatterns: size={size} makes more than {MAX_RESIZED_PIXELS} pixels of {len(files[:count])} images: "
            "lower it."
        )
    images = [_grey_image(path, size) for path in files[:count]]
    return np.stack(images) if images else np.empty((0, size, size), dtype=np.float32)


def _grey_image(path: Path, size: int) -> NDArray[np.float32]:
    content = io.BytesIO(read_bytes(path, MAX_FILE_BYTES))
    with (
        reading(path, f"an image of the formats {', '.join(FORMATS)} that can be read"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # real damage raises an error
        with _open(content) as image:
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
                raise ValueError(f"its mode is {image.mode}; 8-bit grey or RGB is wanted")
            if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise ValueError("it has transparent pixels; 8-bit grey or RGB is wanted")
            upright = ImageOps.exif_transpose(image)  # cameras store the orientation instead of rotating the pixels
            grey = np.asarray(upright.convert("L").resize((size, size)), dtype=np.float32)
    return grey / np.float32(255)


def _open(content: io.BytesIO) -> ImageFile:
    """Opens an image by its header; the pixels are read later."""
    try:
        image = Image.open(content, formats=FORMATS)
        too_many = image.width * image.height > MAX_PIXELS
    except Image.DecompressionBombError:
        too_many = True
    except UnidentifiedImageError:
        raise ValueError("its header is of none of them") from None
    if too_many:
        raise ValueError(f"it has more than {MAX_PIXELS} pixels, the limit")
    return image
