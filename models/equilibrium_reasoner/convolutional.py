"""A convolutional cell."""

from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import conv1d, conv2d

from models.equilibrium_reasoner.cell import ReasoningCell, rescaled
from rbp_lightning.errors import UserError, check_count
from rbp_lightning.pytree import State
from rbp_lightning.solvers import Update

CONVOLUTIONS = {1: (nn.Conv1d, conv1d), 2: (nn.Conv2d, conv2d)}
WIDTH = 3


def convolution(dims: int, inputs: int, outputs: int) -> nn.Module:
    """Returns a convolution of width 3 that keeps the number of positions.

    Args:
        dims: Number of dimensions, 1 or 2.
        inputs: Number of input channels.
        outputs: Number of output channels.
    """
    return CONVOLUTIONS[dims][0](inputs, outputs, WIDTH, padding=WIDTH // 2)


class ConvolutionalBlock(nn.Module):
    """u = relu(conv([h, d])), then relu(u + conv(relu(conv(u)))), each position divided by its root mean square.

    Args:
        dims: Number of dimensions, 1 or 2.
        num_hidden: Number of channels of h.
        num_drive: Number of channels of d.

    Example:
        >>> from models.equilibrium_reasoner.convolutional import ConvolutionalBlock
        >>> block = ConvolutionalBlock(dims=1, num_hidden=8, num_drive=2)
        >>> block(torch.zeros(1, 8, 5), block.drive(torch.ones(1, 2, 5))).shape
        torch.Size([1, 8, 5])
    """

    def __init__(self, dims: int, num_hidden: int, num_drive: int) -> None:
        super().__init__()
        self.num_hidden, self._convolve = num_hidden, CONVOLUTIONS[dims][1]
        self.inject = convolution(dims, num_hidden + num_drive, num_hidden)
        self.first = convolution(dims, num_hidden, num_hidden)
        self.second = convolution(dims, num_hidden, num_hidden)

    def drive(self, drive: Tensor) -> Tensor:
        """Computes the contribution of d to the first convolution, which is constant if d is.

        Args:
            drive: d, of shape ``[batch, num_drive, *positions]``.
        """
        weight: Any = self.inject.weight
        bias: Any = self.inject.bias
        return self._convolve(drive, weight[:, self.num_hidden :], bias, padding=WIDTH // 2)

    def forward(self, state: Tensor, drive: Tensor) -> Tensor:
        """Takes a step.

        Args:
            state: h, of shape ``[batch, num_hidden, *positions]``.
            drive: The result of ``drive``.
        """
        weight: Any = self.inject.weight
        hidden = torch.relu(self._convolve(state, weight[:, : self.num_hidden], padding=WIDTH // 2) + drive)
        return rescaled(torch.relu(hidden + self.second(torch.relu(self.first(hidden)))))


class ConvolutionalCell(ReasoningCell):
    """A residual block of convolutions of width 3 that is iterated with the inputs injected at every step.

    It is the recurrent network of Bansal et al. (NeurIPS 2022), with "recall", in its smallest form. The same weights
    solve puzzles of any size.

    Args:
        num_inputs: Number of input channels.
        num_classes: Number of classes of a position.
        num_hidden: Number of hidden channels.
        dims: 1 for sequences, 2 for grids.
        mask_channel: Index of the input channel, of zeros and ones, with which each new state is multiplied, such as
            the free positions of a maze; ``None`` for no mask.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> cell = ConvolutionalCell(num_inputs=1, num_classes=2, num_hidden=8)
        >>> update, state = cell.start(torch.ones(4, 1, 16))
        >>> cell.scores(update(state)).shape
        torch.Size([4, 2, 16])
    """

    def __init__(
        self,
        num_inputs: int,
        num_classes: int,
        num_hidden: int = 48,
        dims: Literal[1, 2] = 1,
        mask_channel: int | None = None,
    ) -> None:
        super().__init__(num_inputs, num_classes, num_hidden)
        self.dims = check_dims(self, dims)
        self.mask_channel = (
            None if mask_channel is None else check_count(self, "mask_channel", mask_channel, 0, num_inputs - 1)
        )
        self.block = ConvolutionalBlock(dims, num_hidden, num_inputs)
        self.readout = readout(dims, num_hidden, num_classes)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # faster; affects only 2D convolutions

    def start(self, inputs: Tensor) -> tuple[Update, State]:
        """Computes the contribution of the inputs, and returns the update and a state of zeros."""
        drive = self.block.drive(inputs)
        if self.mask_channel is None:
            return lambda state: self.block(state, drive), torch.zeros_like(drive)
        mask = inputs[:, self.mask_channel].unsqueeze(1).to(drive.dtype)
        return lambda state: mask * self.block(state, drive), torch.zeros_like(drive)

    def scores(self, state: State) -> Tensor:
        """Returns the result of two convolutions of the state."""
        scores: Tensor = self.readout(state)
        return scores


def check_dims(owner: object, dims: int) -> int:
    """Checks a number of dimensions, and returns it.

    Args:
        owner: The object whose argument it is.
        dims: The argument's value.

    Raises:
        UserError: If it is neither 1 nor 2.
    """
    if dims not in CONVOLUTIONS or isinstance(dims, bool):
        raise UserError(f"{type(owner).__name__}: dims={dims!r} must be 1, for sequences, or 2, for grids.")
    return dims


def readout(dims: int, num_hidden: int, num_classes: int) -> nn.Module:
    """Returns two convolutions that turn a state into class scores.

    Args:
        dims: Number of dimensions, 1 or 2.
        num_hidden: Number of channels of the state.
        num_classes: Number of classes.
    """
    return nn.Sequential(
        convolution(dims, num_hidden, num_hidden), nn.ReLU(), convolution(dims, num_hidden, num_classes)
    )
