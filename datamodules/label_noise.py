"""Label noise for training data."""

import numpy as np
from numpy.typing import NDArray


def flip_labels(
    labels: NDArray[np.int64], classes: NDArray[np.int64], fraction: float, generator: np.random.Generator
) -> NDArray[np.int64]:
    """Replaces a fraction of the labels, each by one of the other classes with equal probability.

    Args:
        labels: Class of each example.
        classes: All classes, sorted; at least two.
        fraction: Fraction of the labels to replace, rounded to whole labels.
        generator: The random generator.

    Returns:
        The noisy labels.

    Example:
        >>> flip_labels(np.array([1, 1, 3, 3]), np.array([1, 3]), 1.0, np.random.default_rng(0)).tolist()
        [3, 3, 1, 1]
    """
    flipped = generator.permutation(len(labels))[: round(fraction * len(labels))]
    offsets = generator.integers(1, len(classes), len(flipped))
    noisy = labels.copy()
    noisy[flipped] = classes[(np.searchsorted(classes, labels[flipped]) + offsets) % len(classes)]
    return noisy
