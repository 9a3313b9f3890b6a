"""A cell with one feature map."""

import torch
from torch import Tensor, nn

from models.equilibrium_classifier.cell import POOLED, ImageCell, Norm, pooled, stem
from rbp_lightning import contractive, held
from rbp_lightning.pytree import State
from rbp_lightning.solvers import Update


class ConvolutionalImageCell(ImageCell):
    """h <- relu(W * h + d), where d is the stem's output and the norm of the convolution W is bounded.

    ReLU has slopes of at most 1, so the update is a contraction with constant ``bound``.

    Args:
        num_channels: Number of channels of an image.
        num_classes: Number of classes.
        num_hidden: Number of channels of h.
        halvings: Number of times that the sides of an image are halved before it is injected.
        norm: The norm in which the update is a contraction.
        bound: The contraction constant, in (0, 1).
        depth: Number of convolutions at each resolution of the stem; ``depth - 1`` more precede the readout.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> cell = ConvolutionalImageCell(num_hidden=8)
        >>> update, state = cell.start(torch.ones(4, 1, 28, 28))
        >>> state.shape, cell.scores(update(state)).shape
        (torch.Size([4, 8, 14, 14]), torch.Size([4, 10]))
    """

    def __init__(
        self,
        num_channels: int = 1,
        num_classes: int = 10,
        num_hidden: int = 48,
        halvings: int = 1,
        norm: Norm = "infinity",
        bound: float = 0.9,
        depth: int = 1,
    ) -> None:
        super().__init__(num_channels, num_classes, num_hidden, halvings, norm, bound, depth)
        self.stem = stem(num_channels, num_hidden, halvings, depth)
        self.hidden = contractive(nn.Conv2d(num_hidden, num_hidden, 3, padding=1, bias=False), bound, norm)
        self.readout = nn.Sequential(pooled(num_hidden, depth), nn.Linear(num_hidden * POOLED**2, num_classes))

    def start(self, images: Tensor) -> tuple[Update, State]:
        """Computes d, and returns the update and a state of zeros."""
        drive = self.stem(images)
        update = held(lambda state: torch.relu(self.hidden(state) + drive), self.hidden)
        return update, torch.zeros_like(drive)

    def scores(self, state: State) -> Tensor:
        """Returns a linear map of the pooled feature map."""
        scores: Tensor = self.readout(state)
        return scores
