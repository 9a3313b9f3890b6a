"""A training run as an update of (parameters, velocities), whose fixed point is the trained network."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch import distributed as dist

from models.hyperparameters import Examples
from models.inner_training.momentum_sgd import MomentumSGD, Tensors
from models.inner_training.objective import InnerObjective
from rbp_lightning.nn.replicated import replicated

Training = Mapping[str, Tensors]
"""State of the inner training: ``parameters`` and ``velocities``, both by the names of the parameters."""


class SGDUpdate:
    """A step of the inner training, on the next minibatch at each call.

    Minibatches go through the examples in an order drawn anew for each pass, and depend on the seed alone. With several
    processes, each takes its share of every minibatch and all take the same steps.

    Args:
        objective: The loss to minimise.
        sgd: The step.
        training: The training split.
        batch_size: Examples in a minibatch, of all processes together.
        seed: Seed of the order of the examples.
        linearization_size: Number of examples of a step on the tape, and of those after it, where an estimator
            linearises that step instead of differentiating the whole run; ``None`` where it does not.
        on_step: Called after each step with the number of steps and the loss before it.

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
        linearization_size: int | None = None,
        on_step: Callable[[int, Tensor], None] | None = None,
    ) -> None:
        self.objective, self.sgd, self.training = objective, sgd, training
        self.num_examples = len(training["labels"])
        self.batch_size = min(batch_size, self.num_examples)
        self.linearization_size = linearization_size
        self.on_step = on_step
        self.steps = 0
        self._generator = torch.Generator().manual_seed(seed)
        self._order = torch.empty(0, dtype=torch.int64)
        self._linearized: Tensor | None = None

    def start(self, network: torch.nn.Module) -> Training:
        """The state from which a network's own parameters are trained, at rest."""
        parameters = {name: parameter.detach().clone() for name, parameter in network.named_parameters()}
        velocities = {name: torch.zeros_like(parameter) for name, parameter in parameters.items()}
        return {"parameters": parameters, "velocities": velocities}

    def __call__(self, state: Training) -> Training:
        """Takes a step."""
        examples, count = share_of(self.training, self._examples())
        loss, gradient = self._gradient(state["parameters"], examples, count)
        self.steps += 1
        if self.on_step is not None:
            self.on_step(self.steps, loss)
        following: Training = self.sgd(state, gradient)
        return following

    def _examples(self) -> Tensor:
        """Numbers of the examples of the next step."""
        # Estimators that linearise have no tape before the step that they do that at.
        if self._linearized is None and self.linearization_size is not None and torch.is_grad_enabled():
            self._linearized = self._shuffled()[: self.linearization_size]
        if self._linearized is not None:
            return self._linearized
        if len(self._order) == 0:
            self._order = self._shuffled()
        chosen, self._order = self._order[: self.batch_size], self._order[self.batch_size :]
        return chosen

    def _shuffled(self) -> Tensor:
        # Drawn on the CPU, so that every device and process sees the same order.
        return torch.randperm(self.num_examples, generator=self._generator).to(self.training["labels"].device)

    def _gradient(self, parameters: Tensors, examples: Examples, count: float) -> tuple[Tensor, Tensors]:
        taped = torch.is_grad_enabled()
        with torch.no_grad():
            # Unlike a detached one, a copy has the tangent of forward mode, which CGRBP may have to take.
            own = {
                name: parameter if taped and parameter.requires_grad else parameter.clone().requires_grad_()
                for name, parameter in parameters.items()
            }
        with torch.enable_grad():
            loss = self.objective({name: replicated(leaf) for name, leaf in own.items()}, examples, count)
            # What the loss does not depend on, such as the bias of a layer that is switched off, is left alone.
            gradient = torch.autograd.grad(loss, list(own.values()), create_graph=taped, materialize_grads=True)
        if not taped:
            # Under autocast each step's parameters would be kept, cast, until the run is over.
            torch.clear_autocast_cache()
        return loss.detach(), dict(zip(own, gradient, strict=True))


def share_of(examples: Examples, chosen: Tensor | slice) -> tuple[Examples, float]:
    """This process's share of some examples.

    Args:
        examples: All examples.
        chosen: Numbers of the examples to share out.

    Returns:
        The share, and what to divide a sum over it by for the mean of the processes' quotients to be the mean over all
        the examples that were chosen.
    """
    rank, processes = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    mine = {name: values[chosen][rank::processes] for name, values in examples.items()}
    return mine, len(examples["labels"][chosen]) / processes
