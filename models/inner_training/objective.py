"""The loss of the inner training, and the plain loss by which its result is evaluated."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy, mse_loss, one_hot

from models.hyperparameters import Examples, Hyperparameter
from models.inner_training.momentum_sgd import Tensors
from rbp_lightning.errors import UserError


def squared_error(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns half of the squared distance of each example's outputs from its target.

    Args:
        outputs: Scores, of shape ``[n, num_classes]``.
        targets: Class probabilities, of the same shape.

    Returns:
        Losses, of shape ``[n]``.
    """
    return mse_loss(outputs, targets, reduction="none").sum(1) / 2


def soft_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    """Returns the cross-entropy of each example, with arguments and result as for ``squared_error``."""
    return cross_entropy(outputs, targets, reduction="none")


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "cross_entropy": soft_cross_entropy,
    "squared_error": squared_error,
}


class InnerObjective(nn.Module):
    """The loss of a network as a function of its parameters.

    Args:
        network: Maps images to class scores. Parameters that a call does not pass keep the network's own values.
        hyperparameters: The hyperparameters, applied to the loss one after the other.
        loss: A key of ``LOSSES``.

    Example:
        >>> network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        >>> objective = InnerObjective(network, [], "cross_entropy")
        >>> examples = {"images": torch.ones(3, 2, 2), "labels": torch.zeros(3, dtype=torch.int64)}
        >>> zeros = {name: torch.zeros_like(parameter) for name, parameter in network.named_parameters()}
        >>> objective(zeros, examples, divisor=3)
        tensor(0.6931)
    """

    def __init__(self, network: nn.Module, hyperparameters: Iterable[Hyperparameter], loss: str) -> None:
        super().__init__()
        self.network = network
        self.hyperparameters: Sequence[Hyperparameter] = nn.ModuleList(hyperparameters)  # type: ignore[assignment]
        self.loss = LOSSES[loss]

    def forward(self, parameters: Tensors, examples: Examples, divisor: float) -> Tensor:
        """Returns the loss that the inner training minimises, a scalar.

        Args:
            parameters: The trained parameters by name.
            examples: The minibatch, or this process's shard of it.
            divisor: Divides the sum over the examples.
        """
        inputs = examples["images"]
        for hyperparameter in self.hyperparameters:
            inputs = hyperparameter.inputs(inputs, examples)
        outputs = functional_call(self.network, dict(parameters), (inputs,))
        targets = _one_hot(examples["labels"], outputs)
        for hyperparameter in self.hyperparameters:
            targets = hyperparameter.targets(targets, examples)
        losses = self.loss(outputs, targets)
        for hyperparameter in self.hyperparameters:
            losses = hyperparameter.losses(losses, examples)
        total = losses.sum() / divisor
        complete = {**dict(self.network.named_parameters()), **parameters}
        for hyperparameter in self.hyperparameters:
            total = total + hyperparameter.penalty(complete)
        return total

    def plain(self, parameters: Tensors, examples: Examples, divisor: float) -> Tensor:
        """Returns the loss of the network in evaluation mode, without the hyperparameters.

        Arguments and result are those of ``forward``.
        """
        modes = {module: module.training for module in self.network.modules()}
        self.network.eval()
        outputs = functional_call(self.network, dict(parameters), (examples["images"],))
        for module, mode in modes.items():  # parts of the network may always be in evaluation mode
            module.training = mode
        return self.loss(outputs, _one_hot(examples["labels"], outputs)).sum() / divisor


def _one_hot(labels: Tensor, outputs: Tensor) -> Tensor:
    if outputs.dim() != 2:
        raise UserError(
            f"The network's outputs have the shape {tuple(outputs.shape)}: they must be [batch, num_classes]."
        )
    # In half precision, weak label smoothing would be lost to rounding.
    return one_hot(labels, outputs.shape[1]).to(torch.promote_types(outputs.dtype, torch.float32))
