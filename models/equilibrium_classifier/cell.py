"""The interface of cells that look at images."""

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

    The image goes through a stem once: a convolution of stride 2 for each halving of its sides, and one more. Batch
    normalisation is in the stem and in the readout, and not in the update, for there samples must not act on each
    other.

    Constructor arguments are plain values. A cell keeps each in an attribute of the same name, where checkpoints find
    it.

    Args:
        num_channels: Number of channels of an image, at least 1.
        num_classes: Number of classes, at least 2.
        num_hidden: Number of channels of a feature map, at least 1.
        halvings: How often the sides of an image are halved, at least 0.
        norm: In which norm the update is a contraction, as for ``contractive``.
        bound: Its constant, in (0, 1).

    Raises:
        UserError: If an argument is out of its range.
    """

    def __init__(
        self, num_channels: int, num_classes: int, num_hidden: int, halvings: int, norm: Norm, bound: float
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

    @abstractmethod
    def start(self, images: Tensor) -> tuple[Update, State]:
        """Prepares a solve.

        Args:
            images: Of shape ``[batch, num_channels, height, width]``.

        Returns:
            The update, into which the images are injected at every step, and the state of zeros that it starts from.
        """

    @abstractmethod
    def scores(self, state: State) -> Tensor:
        """Class scores (logits), of shape ``[batch, num_classes]``, of a state."""


POOLED = 3
"""Height and width of the feature maps that are read out."""


def stem(num_channels: int, num_hidden: int, halvings: int) -> nn.Sequential:
    """Convolutions that turn images into feature maps of half the sides, as often as that is asked for.

    Args:
        num_channels: Number of channels of an image.
        num_hidden: Number of channels of a feature map.
        halvings: How often sides are halved; without any there is one convolution as well.
    """
    layers: list[nn.Module] = []
    between = num_channels
    for _ in range(halvings - 1):
        layers += [_convolution(between, num_hidden // 2 or 1, stride=2), nn.ReLU()]
        between = num_hidden // 2 or 1
    return nn.Sequential(*layers, _convolution(between, num_hidden, stride=2 if halvings else 1))


def _convolution(inputs: int, outputs: int, stride: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1, bias=False), nn.BatchNorm2d(outputs))


def pooled(num_hidden: int) -> nn.Module:
    """Turns a feature map into ``POOLED`` x ``POOLED`` averages of each channel, as a vector.

    Args:
        num_hidden: Number of its channels.
    """
    return nn.Sequential(nn.BatchNorm2d(num_hidden), nn.AdaptiveAvgPool2d(POOLED), nn.Flatten())
