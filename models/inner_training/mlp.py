"""The paper's network for hyperparameter optimisation."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from rbp_lightning.errors import UserError, check_count, check_entries, check_number


class MLP(nn.Sequential):
    """Fully connected tanh network, weights and biases initialised from exp(log_scale) N(0, 1) (paper, section 4.3).

    Args:
        sizes: Number of units in each layer, from pixels to classes; at least two layers.
        log_scale: Natural logarithm of the standard deviation of the initial weights and biases.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> MLP([64, 20, 10])(torch.zeros(3, 1, 8, 8)).shape
        torch.Size([3, 10])
    """

    def __init__(self, sizes: Sequence[int] = (784, 50, 50, 50, 10), log_scale: float = -3.0) -> None:
        if not isinstance(sizes, Sequence) or len(sizes) < 2:
            raise UserError(f"MLP: sizes={sizes!r} must list at least two layers, pixels and classes.")
        for size in sizes:
            check_count(self, "sizes", size, 1)
        check_entries(self, sum(inputs * outputs for inputs, outputs in pairwise(sizes)), sizes=list(sizes))
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.Tanh()]
        super().__init__(*layers[:-1])
        self.pixels = sizes[0]
        scale = math.exp(check_number(self, "log_scale", log_scale, -50.0, 10.0))
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=scale)

    def forward(self, images: Tensor) -> Tensor:
        """Returns class scores (logits), of shape ``[batch, num_classes]``.

        Args:
            images: Images of shape ``[batch, ...]``.

        Raises:
            UserError: If their number of pixels is not ``sizes[0]``.
        """
        pixels, units = images.shape[1:].numel(), self.pixels
        if pixels != units:
            raise UserError(f"MLP: the images have {pixels} pixels, but sizes starts with {units}: make it {pixels}.")
        scores: Tensor = super().forward(images)  # type: ignore[no-untyped-call]
        return scores
