"""A weight that is computed from what is learned, in a module that a process can be handed."""

from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList


class ParametrizedWeight(nn.Module):
    """Has a ``weight`` that a parametrisation computes, anew at every reading.

    ``register_parametrization`` makes a class for each module, of which no instance can be pickled, and so none be
    handed to a process that is spawned. The names in the ``state_dict`` are the same.

    Args:
        original: What is learned.
        parametrization: Computes the weight from it.

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
        """The weight."""
        weight: Tensor = self.parametrizations["weight"]()
        return weight
