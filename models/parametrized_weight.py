"""A parametrised weight in a module that can be pickled."""

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList


class ParametrizedWeight(nn.Module):
    """A module whose ``weight`` is computed by a parametrisation at every access.

    ``register_parametrization`` creates a class for each module, whose instances cannot be pickled and thus not be
    passed to a spawned process. The names in the ``state_dict`` are the same as with it.

    Args:
        original: The initial value of the learned parameter.
        parametrization: Computes the weight from the parameter.

    Example:
        >>> from rbp_lightning import SpectralNormBound
        >>> module = ParametrizedWeight(torch.eye(2), SpectralNormBound(0.9))
        >>> module.weight.detach()
        tensor([[0.9000, 0.0000],
                [0.0000, 0.9000]])
        >>> list(module.state_dict())
        ['parametrizations.weight.original']
    """

    def __init__(self, original: Tensor, parametrization: nn.Module) -> None:
        super().__init__()
        self.parametrizations = nn.ModuleDict(
            {"weight": ParametrizationList([parametrization], nn.Parameter(original.detach()))}
        )

    @property
    def weight(self) -> Tensor:
        """The weight, computed from the learned parameter."""
        weight: Tensor = self.parametrizations["weight"]()
        return weight
