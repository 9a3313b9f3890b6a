"""Ways to corrupt a binary image."""

from collections.abc import Callable

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray

Image = NDArray[np.float32]


def erase(image: Image, level: float, generator: Generator) -> Image:
    """Turns a fraction of the on pixels off (the paper's corruption).

    Args:
        image: Pixels, 0 or 1, of shape ``[height, width]``.
        level: Fraction of the on pixels, 0 to 1, rounded to whole pixels.
        generator: The random generator.

    Returns:
        The corrupted image.

    Example:
        >>> int(erase(np.ones((4, 4), dtype=np.float32), 0.25, np.random.default_rng(0)).sum())
        12
    """
    on = np.flatnonzero(image)
    corrupted = image.copy()
    corrupted.flat[generator.permutation(on)[: round(level * len(on))]] = 0
    return corrupted


def salt_and_pepper(image: Image, level: float, generator: Generator) -> Image:
    """Replaces a fraction of all pixels by random ones, on or off with equal probability.

    Args:
        image: Pixels, 0 or 1, of shape ``[height, width]``.
        level: Fraction of the pixels, 0 to 1, rounded to whole pixels.
        generator: The random generator.

    Returns:
        The corrupted image.
    """
    count = round(level * image.size)
    corrupted = image.copy()
    corrupted.flat[generator.permutation(image.size)[:count]] = generator.integers(0, 2, count)
    return corrupted


def occlude(image: Image, level: float, generator: Generator) -> Image:
    """Turns all pixels of a randomly placed block off; it has the proportions of the image.

    Args:
        image: Pixels, 0 or 1, of shape ``[height, width]``.
        level: Fraction of the image's area, 0 to 1; the block's sides are rounded to whole pixels.
        generator: The random generator.

    Returns:
        The corrupted image.
    """
    height, width = (round(side * level**0.5) for side in image.shape)
    top = generator.integers(0, image.shape[0] - height + 1)
    left = generator.integers(0, image.shape[1] - width + 1)
    corrupted = image.copy()
    corrupted[top : top + height, left : left + width] = 0
    return corrupted


CORRUPTIONS: dict[str, Callable[[Image, float, Generator], Image]] = {
    "erase": erase,
    "salt_and_pepper": salt_and_pepper,
    "occlude": occlude,
}
