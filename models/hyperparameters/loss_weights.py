"""Learned weights of classes and of examples in the loss."""

import torch
from torch import Tensor, nn

from models.hyperparameters.base import Examples, Hyperparameter
from models.labels import check_labels
from rbp_lightning.errors import UserError, check_count


class ClassWeights(Hyperparameter):
    """A weight exp(theta) for the examples of each class, initially 1.

    Args:
        num_classes: Number of classes, at least 2.

    Raises:
        UserError: If the argument is out of its range.

    Example:
        >>> ClassWeights(2).losses(torch.tensor([3.0, 4.0]), {"labels": torch.tensor([1, 0])}).detach()
        tensor([3., 4.])
    """

    def __init__(self, num_classes: int = 10) -> None:
        super().__init__()
        self.num_classes = check_count(self, "num_classes", num_classes, 2)
        self.log_weights = nn.Parameter(torch.zeros(num_classes))

    def check(self, training: Examples) -> None:
        """Checks that every label has a weight."""
        check_labels(self, self.num_classes, training["labels"])

    def losses(self, losses: Tensor, examples: Examples) -> Tensor:
        """Returns the losses times the weights of their labels."""
        return self.log_weights.exp()[examples["labels"]] * losses

    def values(self) -> dict[str, Tensor]:
        """Returns the weight of each class."""
        return {f"class_weight/{label}": weight for label, weight in enumerate(self.log_weights.exp())}


class ExampleWeights(Hyperparameter):
    """A weight 2 sigmoid(theta) for each training example, between 0 and 2, initially 1.

    With an outer loss on clean validation examples it finds training examples with wrong labels ("data
    hyper-cleaning", Franceschi et al., ICML 2017).

    Args:
        num_examples: Number of training examples, at least 1.

    Raises:
        UserError: If the argument is out of its range.

    Example:
        >>> ExampleWeights(3).losses(torch.tensor([3.0, 4.0]), {"index": torch.tensor([2, 0])}).detach()
        tensor([3., 4.])
    """

    def __init__(self, num_examples: int) -> None:
        super().__init__()
        self.num_examples = check_count(self, "num_examples", num_examples, 1)
        self.logits = nn.Parameter(torch.zeros(num_examples))

    def check(self, training: Examples) -> None:
        """Checks that there are as many examples as weights."""
        count = len(training["index"])
        if count != self.num_examples:
            raise UserError(
                f"ExampleWeights: num_examples={self.num_examples}, but there are {count} training examples: set "
                f"num_examples to {count}."
            )

    def losses(self, losses: Tensor, examples: Examples) -> Tensor:
        """Returns the losses times the weights of their examples."""
        return self.weights()[examples["index"]] * losses

    def weights(self) -> Tensor:
        """Returns the weights, of shape ``[num_examples]``."""
        return 2 * self.logits.sigmoid()

    def values(self) -> dict[str, Tensor]:
        """Returns all weights."""
        return {"example_weight": self.weights()}
