"""The interface of hyperparameters that a hypergradient learns."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TypeAlias

from torch import Tensor, nn

Examples: TypeAlias = Mapping[str, Tensor]
"""``images`` of shape [n, ...], ``labels``, int64, and each one's number in its split, ``index``, of shape [n]."""


class Hyperparameter(nn.Module, ABC):
    """Something in the loss of the inner training that is learned from the outer loss.

    A subclass holds what is learned in parameters that may take any real value, and overrides the methods by which it
    acts on the inner loss. None of them acts on the outer loss or on evaluation.

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
        """Makes what depends on the network; called once, when the optimisation is built.

        Args:
            parameters: The network's parameters by name.
        """

    def check(self, training: Examples) -> None:
        """Refuses training data that the hyperparameter does not fit; called before each inner training.

        Args:
            training: The whole training split.

        Raises:
            UserError: If it does not fit.
        """

    def inputs(self, inputs: Tensor, examples: Examples) -> Tensor:
        """Returns what the network sees in place of the images, of shape ``[n, ...]``.

        Args:
            inputs: The images, or what other hyperparameters made of them.
            examples: The minibatch.
        """
        return inputs

    def targets(self, targets: Tensor, examples: Examples) -> Tensor:
        """Returns the class probabilities to learn, of shape ``[n, num_classes]``.

        Args:
            targets: One-hot labels, or what other hyperparameters made of them.
            examples: The minibatch.
        """
        return targets

    def losses(self, losses: Tensor, examples: Examples) -> Tensor:
        """Returns the losses whose mean is minimised, of shape ``[n]``.

        Args:
            losses: The loss of each example, or what other hyperparameters made of it.
            examples: The minibatch.
        """
        return losses

    def penalty(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """Returns what is added to the mean loss, a scalar.

        Args:
            parameters: The network's parameters by name, of the inner training's current step.
        """
        return next(iter(parameters.values())).new_zeros(())

    @abstractmethod
    def values(self) -> dict[str, Tensor]:
        """Names and values, in natural units, for TensorBoard: scalars as curves, longer ones as histograms too."""
