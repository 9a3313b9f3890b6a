"""Sources of labelled images: scikit-learn's digits, MNIST and CIFAR-10."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

from datamodules.cifar_files import cifar_files, read_cifar
from datamodules.mnist_files import TEST_FILES, TRAINING_FILES, labelled_images, mnist_files

Examples = tuple[NDArray[np.uint8], NDArray[np.uint8], int]


class Source(NamedTuple):
    """A data set.

    Attributes:
        files: Finds the files in a ``data_dir``, or downloads them.
        load: Reads the files. Returns all images, of shape ``[n, channels, height, width]``, their labels, of shape
            ``[n]``, and the number of images from test files, which come last.
        brightest: The largest value of a pixel.
    """

    files: Callable[[str | None], list[Path]]
    load: Callable[[list[Path]], Examples]
    brightest: int


def _digits(files: list[Path]) -> Examples:
    digits = load_digits()
    return digits.images[:, None].astype(np.uint8), digits.target.astype(np.uint8), 0


def _mnist_files(data_dir: str | None) -> list[Path]:
    return mnist_files((*TRAINING_FILES, *TEST_FILES), data_dir)


def _mnist(files: list[Path]) -> Examples:
    images, labels = labelled_images(*files[:2])
    test_images, test_labels = labelled_images(*files[2:])
    together = np.concatenate([images, test_images])[:, None]
    return together, np.concatenate([labels, test_labels]), len(test_labels)


SOURCES = {
    "digits": Source(lambda data_dir: [], _digits, 16),
    "mnist": Source(_mnist_files, _mnist, 255),
    "cifar10": Source(lambda data_dir: [cifar_files(data_dir)], lambda files: read_cifar(*files), 255),
}
"""The data sets, by name."""
