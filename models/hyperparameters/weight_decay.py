"""L2 coefficients."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from models.hyperparameters.base import Hyperparameter
from rbp_lightning.errors import check_number


class WeightDecay(Hyperparameter):
    """An L2 coefficient exp(theta) for each of the network's tensors: adds exp(theta) ||w||^2 / 2 to the loss.

    Args:
        initial: The coefficient of all tensors to start from, above 0.

    Raises:
        UserError: If the argument is out of its range.

    Example:
        >>> decay = WeightDecay(initial=0.5)
        >>> decay.bind({"weight": torch.ones(3)})
        >>> decay.penalty({"weight": torch.ones(3)}).detach()
        tensor(0.7500)
    """

    def __init__(self, initial: float = 1e-4) -> None:
        super().__init__()
        self.initial = check_number(self, "initial", initial, 0.0, low_allowed=False)

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Makes a coefficient for each tensor."""
        self.names = list(parameters)
        self.log_coefficients = nn.Parameter(torch.full((len(parameters),), self.initial).log())

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Half of the squared norms, each times its coefficient."""
        squares = torch.stack([parameters[name].square().sum() for name in self.names])
        return (self.log_coefficients.exp() * squares).sum() / 2  # a product of vectors would be rounded by autocast

    def values(self) -> dict[str, Tensor]:
        """The coefficient of each tensor."""
        coefficients = self.log_coefficients.exp()
        return {f"weight_decay/{name}": value for name, value in zip(self.names, coefficients, strict=True)}
