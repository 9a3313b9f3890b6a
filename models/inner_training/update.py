"""A step of the inner training as an update of (parameters, velocities), whose fixed point is the trained network."""

from collections.abc import Callable, Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from models.hyperparameters import Examples
from models.inner_training.minibatches import Minibatches
from models.inner_training.momentum_sgd import MomentumSGD, Tensors
from models.inner_training.objective import InnerObjective
from models.inner_training.shard import local_shard
from rbp_lightning.nn.replicated import replicated

TrainingState: TypeAlias = Mapping[str, Tensors]
"""State of the inner training: ``parameters`` and, with a momentum, ``velocities``, each by parameter name."""

OnStep: TypeAlias = Callable[[int, Tensor, TrainingState], None]
"""Called after each step with the number of steps so far, the loss before the step and the state after it."""


class SGDUpdate:
    """One step of the inner training. Each call uses the next minibatch.

    With several processes, each computes its shard of every minibatch, and all take the same steps.

    Args:
        objective: The loss to minimise.
        sgd: The step. Only the parameters that it names are trained; all others keep the network's values.
        training: The training split.
        batch_size: Examples in a minibatch, over all processes.
        seed: Seed of the order of the examples.
        minibatch_steps: Number of steps on minibatches. Further steps use a fixed set of examples, at which an
            estimator can linearise. ``None`` for all steps.
        linearization_size: Number of examples in the fixed set; ``None`` for the whole split.
        on_step: Called after each step.

    Example:
        >>> network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(1, 2))
        >>> examples = {"images": torch.ones(4, 1), "labels": torch.tensor([0, 1, 1, 1])}
        >>> sgd = MomentumSGD(["1.weight", "1.bias"], learning_rate=0.5, momentum=0.5)
        >>> update = SGDUpdate(InnerObjective(network, [], "cross_entropy"), sgd, examples, batch_size=2, seed=0)
        >>> update(update.start(network))["velocities"].keys(), update.steps
        (dict_keys(['1.weight', '1.bias']), 1)
    """

    def __init__(
        self,
        objective: InnerObjective,
        sgd: MomentumSGD,
        training: Examples,
        batch_size: int,
        seed: int,
        minibatch_steps: int | None = None,
        linearization_size: int | None = None,
        on_step: OnStep | None = None,
    ) -> None:
        self.objective, self.sgd, self.training, self.on_step = objective, sgd, training, on_step
        labels = training["labels"]
        self.minibatches = Minibatches(
            len(labels), batch_size, seed, minibatch_steps, linearization_size, labels.device
        )
        self.steps = 0

    def start(self, network: nn.Module) -> TrainingState:
        """Returns the initial state: the network's parameters and, with a momentum, zero velocities.

        Args:
            network: The network.
        """
        initial = dict(network.named_parameters())
        parameters = {name: initial[name].detach().clone() for name in self.sgd.names}
        if self.sgd.momentum_logits is None:
            return {"parameters": parameters}
        velocities = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        return {"parameters": parameters, "velocities": velocities}

    def __call__(self, state: TrainingState) -> TrainingState:
        """Takes a step.

        Args:
            state: Parameters and velocities.
        """
        examples, divisor = local_shard(self.training, self.minibatches.next_indices())
        loss, gradient = self._gradient(state["parameters"], examples, divisor)
        following: TrainingState = self.sgd(state, gradient)
        self.steps += 1
        if self.on_step is not None:
            self.on_step(self.steps, loss, following)
        return following

    def _gradient(self, parameters: Tensors, examples: Examples, divisor: float) -> tuple[Tensor, Tensors]:
        taped = torch.is_grad_enabled()
        with torch.no_grad():
            # Unlike detach(), clone() keeps the tangent of forward-mode AD.
            leaves = {
                name: parameter if taped and parameter.requires_grad else parameter.clone().requires_grad_()
                for name, parameter in parameters.items()
            }
        with torch.enable_grad():
            loss = self.objective({name: replicated(leaf) for name, leaf in leaves.items()}, examples, divisor)
            # The loss may not depend on every tensor, such as the bias of a disabled layer.
            gradient = torch.autograd.grad(loss, list(leaves.values()), create_graph=taped, materialize_grads=True)
        if not taped:
            # Autocast would keep a cast copy of every step's parameters until the run ends.
            torch.clear_autocast_cache()
        return loss.detach(), dict(zip(leaves, gradient, strict=True))
