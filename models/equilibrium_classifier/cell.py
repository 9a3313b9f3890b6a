"""The interface of cells for image classification."""

import itertools
from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn

from rbp_lightning.errors import UserError, check_choice, check_count, check_number
from rbp_lightning.pytree import State
from rbp_lightning.solvers import Update

Norm = Literal["infinity", "frobenius", "spectral"]

NORMS: tuple[Norm, ...] = ("infinity", "frobenius", "spectral")


class ImageCell(nn.Module, ABC):
    """A contraction of feature maps, which an ``EquilibriumClassifier`` iterates with an image injected at every step.

    The image goes through a stem once, with ``depth`` convolutions at each resolution, of which the first halves the
    sides; without halvings there is one resolution, that of the image. Another ``depth - 1`` precede the pooling of the
    readout. Batch normalisation is in the stem and the readout but not in the update, where samples must not affect
    each other.

    Constructor arguments must be plain values, each kept in an attribute of the same name, from which checkpoints
    record them.

    Args:
        num_channels: Number of channels of an image, at least 1.
        num_classes: Number of classes, at least 2.
        num_hidden: Number of channels of a feature map, at least 1.
        halvings: Number of times that the sides of an image are halved, at least 0.
        norm: The norm in which the update is a contraction, as for ``contractive``.
        bound: The contraction constant, in (0, 1).
        depth: Number of convolutions at each resolution of the stem, at least 1.

    Raises:
        UserError: If an argument is out of its range.
    """

    def __init__(
        self, num_channels: int, num_classes: int, num_hidden: int, halvings: int, norm: Norm, bound: float, depth: int
    ) -> None:
        super().__init__()
        self.num_channels = check_count(self, "num_channels", num_channels, 1)
        self.num_classes = check_count(self, "num_classes", num_classes, 2)
        self.num_hidden = check_count(self, "num_hidden", num_hidden, 1)
        self.halvings = check_count(self, "halvings", halvings, 0, 10)
        self.norm = check_choice(self, "norm", norm, NORMS)
        self.bound = check_number(self, "bound", bound, 0.0, low_allowed=False)
        if bound >= 1:
            raise UserError(f"{type(self).__name__}: bound={bound!r} must be below 1 for a contraction: lower it.")
        self.depth = check_count(self, "depth", depth, 1, 100)

    @abstractmethod
    def start(self, images: Tensor) -> tuple[Update, State]:
        """Prepares a solve.

        Args:
            images: The images, of shape ``[batch, num_channels, height, width]``.

        Returns:
            The update, with the images injected at every step, and the initial state, zeros.
        """

    @abstractmethod
    def scores(self, state: State) -> Tensor:
        """Returns the class scores (logits) of a state, of shape ``[batch, num_classes]``."""


POOLED = 3
"""Height and width to which feature maps are pooled for the readout."""


def stem(num_channels: int, num_hidden: int, halvings: int, depth: int) -> nn.Sequential:
    """Returns the convolutions that turn images into feature maps.

    Args:
        num_channels: Number of channels of an image.
        num_hidden: Number of channels of a feature map.
        halvings: Number of times that the sides are halved; with 0 there is one resolution, that of the image.
        depth: Number of convolutions at each resolution.
    """
    layers: list[nn.Module] = []
    channels = num_channels
    widths = [*[num_hidden // 2 or 1] * (halvings - 1), num_hidden]
    for width, index in itertools.product(widths, range(depth)):
        layers += [_convolution(channels, width, stride=2 if halvings and index == 0 else 1), nn.ReLU()]
        channels = width
    return nn.Sequential(*layers[:-1])


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs))


def pooled(num_hidden: int, depth: int) -> nn.Module:
    """Returns a module that pools a feature map to ``POOLED`` x ``POOLED`` averages per channel, as a vector.

    Args:
        num_hidden: Number of channels of the feature map.
        depth: One more than the number of convolutions before the pooling.
    """
    layers: list[nn.Module] = [nn.BatchNorm2d(num_hidden)]
    for _ in range(depth - 1):
        layers += [_convolution(num_hidden, num_hidden, stride=1), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(POOLED), nn.Flatten())
