"""SGD with learnable learning rates and momenta, the step of the inner training."""

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from rbp_lightning.errors import UserError, check_number

Tensors: TypeAlias = Mapping[str, Tensor]
"""Tensors by parameter name."""


class MomentumSGD(nn.Module):
    """Gradient descent with momentum, with a learning rate exp(theta) and a momentum sigmoid(phi) for each tensor.

    v <- sigmoid(phi) v - (1 - sigmoid(phi)) g and w <- w + exp(theta) v (Maclaurin, Duvenaud and Adams, ICML 2015,
    algorithm 1; checked against the paper's released code). At an optimum both g and v are 0 for any theta and phi,
    so the fixed point does not depend on them.

    Args:
        names: Names of the parameters to train.
        learning_rate: Initial exp(theta), above 0.
        momentum: Initial sigmoid(phi), in [0, 1). 0 is plain gradient descent: no momentum is learned, and the state
            has no velocities. With one learning rate for all tensors, its Jacobian is symmetric.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> sgd = MomentumSGD(["weight"], learning_rate=0.1, momentum=0.5)
        >>> state = {"parameters": {"weight": torch.ones(1)}, "velocities": {"weight": torch.zeros(1)}}
        >>> sgd(state, {"weight": torch.ones(1)})["parameters"]["weight"].detach()
        tensor([0.9500])
    """

    def __init__(self, names: list[str], learning_rate: float, momentum: float) -> None:
        super().__init__()
        check_number(self, "learning_rate", learning_rate, 0.0, low_allowed=False)
        if check_number(self, "momentum", momentum, 0.0, 1.0) == 1:
            raise UserError("MomentumSGD: momentum=1.0 must be below 1: at 1 the gradient has no effect.")
        self.names = names
        self.log_learning_rates = nn.Parameter(torch.full((len(names),), learning_rate).log())
        self.momentum_logits: nn.Parameter | None = None
        if momentum > 0:
            self.momentum_logits = nn.Parameter(torch.full((len(names),), momentum).logit())

    def forward(self, state: Mapping[str, Tensors], gradient: Tensors) -> dict[str, dict[str, Tensor]]:
        """Takes a step.

        Args:
            state: ``parameters`` and, with a momentum, ``velocities``.
            gradient: Gradient of the loss with respect to the parameters, by name.

        Returns:
            The next state.
        """
        rates = self.log_learning_rates.exp().unbind()
        if self.momentum_logits is None:
            named = zip(self.names, rates, strict=True)
            return {"parameters": {name: state["parameters"][name] - rate * gradient[name] for name, rate in named}}
        velocities, parameters = {}, {}
        momenta = self.momentum_logits.sigmoid()
        for name, rate, momentum in zip(self.names, rates, momenta.unbind(), strict=True):
            velocities[name] = momentum * state["velocities"][name] - (1 - momentum) * gradient[name]
            parameters[name] = state["parameters"][name] + rate * velocities[name]
        return {"parameters": parameters, "velocities": velocities}

    def values(self) -> dict[str, Tensor]:
        """Returns the learning rate and the momentum of each tensor."""
        kinds = {"learning_rate": self.log_learning_rates.exp()}
        if self.momentum_logits is not None:
            kinds["momentum"] = self.momentum_logits.sigmoid()
        return {
            f"{kind}/{name}": value
            for kind, values in kinds.items()
            for name, value in zip(self.names, values, strict=True)
        }
