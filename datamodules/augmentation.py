"""Images that are moved a little, to train on."""

import math
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import affine_grid, grid_sample

NUM_DRAWS = 4
"""Random numbers for an image: a turn, a shift in each direction, and a factor of size."""


@lru_cache(maxsize=1)
def epoch_draws(seed: int, epoch: int, count: int) -> NDArray[np.float32]:
    """Random numbers of an epoch, uniform between -1 and 1, of shape ``[count, NUM_DRAWS]``.

    An image's own depend on its position in the data alone, and not on batches, processes or an interruption.

    Args:
        seed: Seed.
        epoch: The training epoch.
        count: How many images there are.
    """
    drawn = np.random.default_rng([seed, 2, epoch]).uniform(-1, 1, (count, NUM_DRAWS))
    return drawn.astype(np.float32)


def moved(images: Tensor, draws: Tensor, shift: float, rotation: float, scaling: float) -> Tensor:
    """Shifts, turns and scales each image; what comes in from outside is 0.

    Args:
        images: Of shape ``[batch, channels, height, width]``.
        draws: Numbers between -1 and 1, of shape ``[batch, NUM_DRAWS]``.
        shift: Largest shift in each direction, in pixels.
        rotation: Largest turn, in degrees.
        scaling: Largest change in size, as a share of it.

    Example:
        >>> image = torch.tensor([[[[0.0, 1.0, 0.0]]]])
        >>> moved(image, torch.tensor([[0.0, 1.0, 0.0, 0.0]]), shift=1, rotation=0, scaling=0)
        tensor([[[[1., 0., 0.]]]])
    """
    angle, size = draws[:, 0] * math.radians(rotation), 1 + draws[:, 3] * scaling
    height, width = images.shape[2:]
    # Of coordinates that go from -1 to 1 in both directions, whatever the sides.
    cosine, sine = angle.cos() * size, angle.sin() * size
    rows = [
        torch.stack([cosine, -sine * height / width, draws[:, 1] * shift * 2 / width], dim=1),
        torch.stack([sine * width / height, cosine, draws[:, 2] * shift * 2 / height], dim=1),
    ]
    grid = affine_grid(torch.stack(rows, dim=1), list(images.shape), align_corners=False)
    return grid_sample(images, grid, align_corners=False)
