"""Checks of the arguments and data of a hyperparameter optimisation."""

from collections.abc import Iterable
from typing import Literal

from torch import nn

from models.hyperparameters import Examples, Hyperparameter
from models.labels import check_labels
from rbp_lightning import FixedPointSolver, UserError
from rbp_lightning.errors import check_choice, check_count

NAME = "HyperparameterOptimizer"


def check_network(network: nn.Module) -> list[str]:
    """Checks a network, and returns the names of the parameters to train.

    Args:
        network: The network. Parameters that do not require a gradient are frozen.

    Raises:
        UserError: If there is nothing to train, or a layer tracks running statistics.

    Example:
        >>> network = nn.Linear(2, 1)
        >>> _ = network.bias.requires_grad_(False)
        >>> check_network(network)
        ['weight']
    """
    for module in network.modules():
        if getattr(module, "track_running_stats", False):
            raise UserError(
                f"{NAME}: the network has a {type(module).__name__} with running statistics, which are not part of "
                "the training's state: use GroupNorm or LayerNorm."
            )
    parameters = dict(network.named_parameters())
    if not parameters:
        raise UserError(f"{NAME}: the network has no parameters to train: pass one that has.")
    trained = [name for name, parameter in parameters.items() if parameter.requires_grad]
    if not trained:
        raise UserError(
            f"{NAME}: all {len(parameters)} parameters of the network are frozen (requires_grad=False): leave at "
            "least one to train."
        )
    return trained


def check_distinct(hyperparameters: Iterable[Hyperparameter]) -> None:
    """Checks that the names of hyperparameters are distinct.

    Args:
        hyperparameters: The hyperparameters, bound to their network.

    Raises:
        UserError: If a name occurs twice.
    """
    names = [name for hyperparameter in hyperparameters for name in hyperparameter.values()]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise UserError(f"{NAME}: {', '.join(sorted(duplicates))} occurs twice among the hyperparameters: keep one.")


def check_linearization(owner: object, batches: int | Literal["all", "fresh"]) -> int | Literal["all", "fresh"]:
    """Checks the argument ``linearization_batches``, and returns it.

    Args:
        owner: The object whose argument it is.
        batches: The value.

    Raises:
        UserError: If it is neither ``"all"`` nor ``"fresh"`` nor a whole number of at least 1.
    """
    if isinstance(batches, str):
        check_choice(owner, "linearization_batches", batches, ("all", "fresh"))
        return batches
    return check_count(owner, "linearization_batches", batches, 1)


def check_solver(solver: FixedPointSolver, batch_size: int, num_examples: int) -> None:
    """Checks that the solver of a training on minibatches, which does not converge, has no tolerance.

    Args:
        solver: The estimator's forward solver.
        batch_size: Examples in a minibatch.
        num_examples: Number of training examples.

    Raises:
        UserError: If the solver has a tolerance and minibatches are smaller than the split.
    """
    if solver.tol > 0 and batch_size < num_examples:
        raise UserError(
            f"{NAME}: the estimator's solver has tol={solver.tol:g}, but a training on minibatches (batch_size="
            f"{batch_size} of {num_examples} examples) does not converge: set tol to 0 to take exactly max_steps="
            f"{solver.max_steps} steps, or batch_size to {num_examples}."
        )


def check_examples(model: nn.Module, num_classes: int, examples: Examples) -> None:
    """Checks that examples fit the number of classes and the network.

    Args:
        model: The optimisation, which maps images to class scores.
        num_classes: Number of classes.
        examples: A split, or a batch of one.

    Raises:
        UserError: If they do not fit.
    """
    check_labels(model, num_classes, examples["labels"])
    images = examples["images"]
    try:
        outputs = model(images[:1]).shape[1:]
    except RuntimeError as error:
        raise UserError(
            f"{NAME}: the network does not take images of shape {tuple(images.shape[1:])}: give it another first "
            f"layer, such as torch.nn.Flatten. ({str(error).splitlines()[0]})"
        ) from error
    if outputs != (num_classes,):
        raise UserError(
            f"{NAME}: num_classes={num_classes}, but the network's outputs have the shape {tuple(outputs)}: "
            "return one score per class."
        )
