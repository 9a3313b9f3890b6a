"""Random affine augmentation of training images."""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

NUM_DRAWS = 4
"""Random numbers per image: a rotation, two shifts and a scaling."""


@lru_cache(maxsize=1)
def epoch_draws(seed: int, epoch: int, count: int) -> NDArray[np.float32]:
    """Returns the random numbers of an epoch, uniform in [-1, 1], of shape ``[count, NUM_DRAWS]``.

    Those of an image depend only on its index, not on batches, processes or interruptions.

    Args:
        seed: The seed.
        epoch: The training epoch.
        count: The number of images.
    """
    drawn = np.random.default_rng([seed, 2, epoch]).uniform(-1, 1, (count, NUM_DRAWS))
    return drawn.astype(np.float32)


def augment(images: Tensor, draws: Tensor, shift: float, rotation: float, scaling: float) -> Tensor:
    """Shifts, rotates and scales each image; pixels from outside the image are 0.

    Args:
        images: The images, of shape ``[batch, channels, height, width]``.
        draws: Random numbers in [-1, 1], of shape ``[batch, NUM_DRAWS]``.
        shift: The largest shift in each direction, in pixels.
        rotation: The largest rotation, in degrees.
        scaling: The largest relative change in size.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0, 0.0]]]])
        >>> augment(image, torch.tensor([[0.0, 1.0, 0.0, 0.0]]), shift=1, rotation=0, scaling=0)
        tensor([[[[1., 0., 0.]]]])
    """
    angle, size = draws[:, 0] * math.radians(rotation), 1 + draws[:, 3] * scaling
    height, width = images.shape[2:]
    # affine_grid's coordinates go from -1 to 1 in both directions, whatever height and width are.
    cosine, sine = angle.cos() * size, angle.sin() * size
    rows = [
        torch.stack([cosine, -sine * height / width, draws[:, 1] * shift * 2 / width], dim=1),
        torch.stack([sine * width / height, cosine, draws[:, 2] * shift * 2 / height], dim=1),
    ]
    grid = affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)
