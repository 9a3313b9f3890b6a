"""The continuous Hopfield network as an update for a fixed-point solver."""

from typing import Literal

import torch
from torch import Tensor, nn

from models.parametrized_weight import ParametrizedWeight
from rbp_lightning.errors import check_choice, check_count, check_entries, check_number
from rbp_lightning.solvers import Update


class SymmetricWithoutSelfLoops(nn.Module):
    """Parametrisation of a symmetric matrix with zero diagonal by its upper triangle.

    Example:
        >>> SymmetricWithoutSelfLoops()(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
        tensor([[0., 2.],
                [2., 0.]])
    """

    def forward(self, weight: Tensor) -> Tensor:
        """Mirrors the upper triangle of a matrix.

        Args:
            weight: The matrix, of shape ``[n, n]``.
        """
        upper = weight.triu(1)
        return upper + upper.T


class HopfieldCell(ParametrizedWeight):
    """Continuous Hopfield network with input, hidden and output units (paper, section 4.1).

    Every unit has a state h and an activation sigmoid(b h). All units are connected by a symmetric matrix W without
    self-loops. The input units are clamped to an image. The others, hidden units before output units, follow
    h <- (1 - a) h + W sigmoid(b h), where the input from the clamped units is constant.

    With s = sigmoid(b h), and x the input from the clamped units, the change of h is -dE/ds of Hopfield's energy
    E = a (integral of h ds) - s W s / 2 - x s. The ``"energy"`` dynamics multiply it by 4 s (1 - s), the slope of each
    activation relative to the largest one, which makes them gradient descent, h <- h - (4 / b) dE/dh. They have the
    same fixed points, and a symmetric Jacobian there, which ``EquilibriumPropagation`` and ``ConjugateGradient`` need;
    the Jacobian of the leaky dynamics is (1 - a) I plus a symmetric matrix times the slopes. Units near saturation move
    slowly.

    Args:
        num_pixels: Number of pixels of an image, at least 1, and of input and of output units.
        num_hidden: Number of hidden units, at least 0.
        decay: a, in (0, 1]: fraction of its state that a unit loses per step.
        gain: b, above 0: slope of the activation.
        weight_scale: Standard deviation of the initial weights, at least 0.
        dynamics: ``"leaky"``, as in the paper, or ``"energy"``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> cell = HopfieldCell(num_pixels=4, num_hidden=8)
        >>> update = cell.clamp(torch.tensor([[0.0, 1.0, 1.0, 0.0]]))
        >>> update(torch.zeros(1, cell.num_free)).shape
        torch.Size([1, 12])
    """

    def __init__(
        self,
        num_pixels: int,
        num_hidden: int,
        decay: float = 0.5,
        gain: float = 2.0,
        weight_scale: float = 0.02,
        dynamics: Literal["leaky", "energy"] = "leaky",
    ) -> None:
        num_pixels = check_count(self, "num_pixels", num_pixels, 1)
        num_hidden = check_count(self, "num_hidden", num_hidden, 0)
        decay = check_number(self, "decay", decay, 0.0, 1.0, low_allowed=False)
        gain = check_number(self, "gain", gain, 0.0, low_allowed=False)
        units = 2 * num_pixels + num_hidden
        check_entries(self, units * units, num_pixels=num_pixels, num_hidden=num_hidden)
        scale = check_number(self, "weight_scale", weight_scale, 0.0)
        super().__init__(scale * torch.randn(units, units), SymmetricWithoutSelfLoops())
        self.dynamics = check_choice(self, "dynamics", dynamics, ("leaky", "energy"))
        self.num_pixels, self.num_hidden, self.decay, self.gain = num_pixels, num_hidden, decay, gain

    @property
    def num_free(self) -> int:
        """Number of units that are not clamped: the hidden and output units."""
        return self.num_hidden + self.num_pixels

    def clamp(self, images: Tensor) -> Update:
        """Clamps the input units, and returns the update of the others.

        Args:
            images: Pixels from 0 to 1, of shape ``[batch, num_pixels]``. A pixel p clamps its unit to 2 p - 1.

        Returns:
            A map of states of shape ``[batch, num_free]``.
        """
        weight = self.weight[:, self.num_pixels :]
        drive = torch.sigmoid(self.gain * (2 * images - 1)) @ weight[: self.num_pixels]
        free = weight[self.num_pixels :]
        if self.dynamics == "leaky":
            return lambda state: (1 - self.decay) * state + drive + torch.sigmoid(self.gain * state) @ free

        def descend(state: Tensor) -> Tensor:
            rates = torch.sigmoid(self.gain * state)
            return state + 4 * rates * (1 - rates) * (drive + rates @ free - self.decay * state)

        return descend
