"""The interface of hyperparameters that a hypergradient learns."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor, nn

Examples: TypeAlias = Mapping[str, Tensor]
"""``images`` of shape [n, ...]; ``labels`` and ``index`` in the split, int64 of shape [n]."""


class Hyperparameter(nn.Module, ABC):
    """A hyperparameter in the loss of the inner training, learned from the outer loss.

    A subclass has unconstrained parameters and overrides the methods that change the inner loss. The outer loss and
    evaluation are not affected.

    Example:
        >>> class Contrast(Hyperparameter):
        ...     "Scales the training images."
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.log_gain = torch.nn.Parameter(torch.zeros(()))
        ...     def inputs(self, inputs, examples):
        ...         return self.log_gain.exp() * inputs
        ...     def values(self):
        ...         return {"contrast": self.log_gain.exp()}
        >>> Contrast().inputs(torch.ones(1), {}).detach()
        tensor([1.])
    """

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Creates whatever depends on the network. Called once, when the optimisation is set up.

        Args:
            parameters: All parameters of the network by name. Those to train require a gradient; the others are
                frozen.
        """

    def check(self, training: Examples) -> None:
        """Checks that the training data fit the hyperparameter. Called before each inner training.

        Args:
            training: The whole training split.

        Raises:
            UserError: If they do not fit.
        """

    def inputs(self, inputs: Tensor, examples: Examples) -> Tensor:
        """Returns the network's inputs, of shape ``[n, ...]``.

        Args:
            inputs: The images, as the hyperparameters before this one returned them.
            examples: The minibatch.
        """
        return inputs

    def targets(self, targets: Tensor, examples: Examples) -> Tensor:
        """Returns the class probabilities to learn, of shape ``[n, num_classes]``.

        Args:
            targets: The one-hot labels, as the hyperparameters before this one returned them.
            examples: The minibatch.
        """
        return targets

    def losses(self, losses: Tensor, examples: Examples) -> Tensor:
        """Returns the losses whose mean is minimised, of shape ``[n]``.

        Args:
            losses: The loss of each example, as the hyperparameters before this one returned it.
            examples: The minibatch.
        """
        return losses

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Returns a penalty to add to the mean loss, a scalar.

        Args:
            parameters: All parameters of the network at the current step, by name.
        """
        return next(iter(parameters.values())).new_zeros(())

    @abstractmethod
    def values(self) -> dict[str, Tensor]:
        """Returns the values by name, in natural units, for logging. Vectors are also logged as histograms."""
