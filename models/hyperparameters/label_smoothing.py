"""Learned label smoothing."""

import torch
from torch import Tensor, nn

from models.hyperparameters.base import Examples, Hyperparameter
from rbp_lightning.errors import UserError, check_number


class LabelSmoothing(Hyperparameter):
    """Mixes the labels with the uniform distribution, with weight sigmoid(theta) (Szegedy et al., CVPR 2016).

    Args:
        initial: Initial weight of the uniform distribution, in (0, 1).

    Raises:
        UserError: If the argument is out of its range.

    Example:
        >>> LabelSmoothing(initial=0.5).targets(torch.tensor([[1.0, 0.0]]), {}).detach()
        tensor([[0.7500, 0.2500]])
    """

    def __init__(self, initial: float = 0.05) -> None:
        super().__init__()
        self.initial = check_number(self, "initial", initial, 0.0, low_allowed=False)
        if initial >= 1:
            raise UserError(f"LabelSmoothing: initial={initial!r} must be below 1: at 1 the labels have no effect.")
        self.logit = nn.Parameter(torch.tensor(initial).logit())

    def targets(self, targets: Tensor, examples: Examples) -> Tensor:
        """Returns the mixture."""
        return targets + self.logit.sigmoid() * (1 / targets.shape[1] - targets)

    def values(self) -> dict[str, Tensor]:
        """Returns the weight of the uniform distribution."""
        return {"label_smoothing": self.logit.sigmoid()}
