"""Setting up the inner training of a network."""

import copy
from collections.abc import Sequence

from torch import nn

from models.hyperparameter_optimization.checks import check_distinct, check_network
from models.hyperparameters import Hyperparameter
from models.inner_training import LOSSES, MLP, InnerObjective, MomentumSGD
from rbp_lightning.errors import check_choice, check_number


def set_up_inner_training(
    owner: object,
    network: nn.Module | None,
    hyperparameters: Sequence[Hyperparameter],
    loss: str,
    inner_learning_rate: float,
    inner_momentum: float,
) -> tuple[InnerObjective, MomentumSGD]:
    """Builds the loss and the step of the inner training.

    The network is copied, and no parameter of the copy requires a gradient, since the outer optimiser learns all
    parameters that do: the hyperparameters. Frozen parameters of the network get no learning rate and no momentum.

    Args:
        owner: The object whose arguments these are.
        network: The network; ``None`` for ``MLP()``.
        hyperparameters: The hyperparameters, which are bound to the copy.
        loss: A key of ``LOSSES``.
        inner_learning_rate: Initial learning rate.
        inner_momentum: Initial momentum.

    Raises:
        UserError: If an argument is out of its range, or the network has nothing to train.
    """
    check_choice(owner, "loss", loss, LOSSES)
    check_number(owner, "inner_learning_rate", inner_learning_rate, 0.0, low_allowed=False)
    check_number(owner, "inner_momentum", inner_momentum, 0.0)
    network = MLP() if network is None else copy.deepcopy(network)
    trained = check_network(network)
    for hyperparameter in hyperparameters:
        hyperparameter.bind(dict(network.named_parameters()))
    check_distinct(hyperparameters)
    objective = InnerObjective(network.requires_grad_(False), hyperparameters, loss)
    return objective, MomentumSGD(trained, inner_learning_rate, inner_momentum)
