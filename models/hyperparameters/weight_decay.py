"""Learned weight decay."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.hyperparameters.base import Hyperparameter
from rbp_lightning.errors import check_number


class WeightDecay(Hyperparameter):
    """L2 penalty with a coefficient exp(theta) for each trained tensor: adds exp(theta) ||w||^2 / 2 to the loss.

    Args:
        initial: Initial coefficient of every tensor, above 0.

    Raises:
        UserError: If the argument is out of its range.

    Example:
        >>> decay = WeightDecay(initial=0.5)
        >>> decay.bind({"weight": torch.ones(3, requires_grad=True)})
        >>> decay.penalty({"weight": torch.ones(3)}).detach()
        tensor(0.7500)
    """

    def __init__(self, initial: float = 1e-4) -> None:
        super().__init__()
        self.initial = check_number(self, "initial", initial, 0.0, low_allowed=False)

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Creates a coefficient for each trained tensor."""
        self.names = [name for name, parameter in parameters.items() if parameter.requires_grad]
        self.log_coefficients = nn.Parameter(torch.full((len(self.names),), self.initial).log())

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Returns half of the squared norms, weighted by the coefficients."""
        squares = torch.stack([parameters[name].square().sum() for name in self.names])
        return (self.log_coefficients.exp() * squares).sum() / 2  # autocast would round a dot product

    def values(self) -> dict[str, Tensor]:
        """Returns the coefficient of each tensor."""
        coefficients = self.log_coefficients.exp()
        return {f"weight_decay/{name}": value for name, value in zip(self.names, coefficients, strict=True)}
