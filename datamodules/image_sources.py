"""Where grey images come from: scikit-learn's digits, MNIST, or a folder."""

import io
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile
from sklearn.datasets import load_digits

from datamodules.files import data_directory, read_bytes, refused_unless
from datamodules.mnist_files import TRAINING_FILES, labelled_images, mnist_files
from rbp_lightning.errors import UserError

GreyImages = NDArray[np.float32]
"""Intensities, 0 to 1, of shape [n, height, width]."""

FORMATS = ("BMP", "GIF", "JPEG", "PNG", "TIFF")
"""Formats of image files, by Pillow's names: pixels alone, none of which is a program or is given to one.

Pillow would hand EPS to Ghostscript, for example.
"""

MOST_FILE_BYTES = 2**27
"""An image file may have no more bytes than these."""

MOST_PIXELS = 2**25
"""An image file may have no more pixels than these, 33 million: a small file can decode to any number of them."""

MOST_RESIZED_PIXELS = 2**28
"""All images of a folder may have no more pixels than these once they are resized: 1 GiB of float32."""


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

    Folders in it and names that start with a dot are left out.

    Args:
        folder: The folder. Its files are of the ``FORMATS``; of several images in a file, the first one counts.
        count: How many.
        size: Height and width that they are resized to.

    Raises:
        UserError: If the folder cannot be read, or a file in it is no image, is damaged, or has more than
            ``MOST_PIXELS`` pixels or ``MOST_FILE_BYTES`` bytes.
    """
    if not data_directory(folder).is_dir():
        raise UserError(f"ImagePatterns: data_dir={folder!r} is not a folder: name one that holds image files.")
    suffixes = Image.registered_extensions()
    with refused_unless(Path(folder), "a folder that can be read"):
        files = sorted(path for path in Path(folder).iterdir() if not path.name.startswith("."))
        files = [path for path in files if path.suffix.lower() in suffixes or not path.is_dir()]
    if len(files[:count]) * size**2 > MOST_RESIZED_PIXELS:
        raise UserError(
            f"ImagePatterns: size={size} makes more than {MOST_RESIZED_PIXELS} pixels of {len(files[:count])} images: "
            "lower it."
        )
    images = [_grey_image(path, size) for path in files[:count]]
    return np.stack(images) if images else np.empty((0, size, size), dtype=np.float32)


def _grey_image(path: Path, size: int) -> NDArray[np.float32]:
    content = io.BytesIO(read_bytes(path, MOST_FILE_BYTES))
    with (
        refused_unless(path, f"an image of the formats {', '.join(FORMATS)} that can be read"),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # what matters of a damaged file is an error
        with _opened(content) as image:
            if image.mode not in ("1", "L", "LA", "P", "RGB", "RGBA"):
                raise ValueError(f"its mode is {image.mode}; 8-bit grey or RGB is wanted")
            if image.has_transparency_data and image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
                raise ValueError("it has transparent pixels; 8-bit grey or RGB is wanted")
            upright = ImageOps.exif_transpose(image)  # cameras store how they were held instead of turning the pixels
            grey = np.asarray(upright.convert("L").resize((size, size)), dtype=np.float32)
    return grey / np.float32(255)


def _opened(content: io.BytesIO) -> ImageFile:
    """Reads the header of an image; its pixels are read where they are asked for."""
    try:
        image = Image.open(content, formats=FORMATS)
        too_many = image.width * image.height > MOST_PIXELS
    except Image.DecompressionBombError:
        too_many = True
    except UnidentifiedImageError:
        raise ValueError("it starts like none of them") from None
    if too_many:
        raise ValueError(f"it has more than {MOST_PIXELS} pixels, which is the limit")
    return image
