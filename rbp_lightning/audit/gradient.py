"""The gradient of a module's training step by an estimator."""

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor

from rbp_lightning.errors import UserError
from rbp_lightning.estimators import GradientEstimator, SolveObserver
from rbp_lightning.failures import Failure

SEED = 0
"""Of what a training step draws, so that all estimators see the same."""


def copy_of(module: LightningModule) -> LightningModule:
    """A copy of a module that its Trainer's hooks can be run on, and that leaves the module as it is."""
    copied = copy.deepcopy(module)
    copied.trainer = module.trainer
    return copied


def loss_of(
    module: LightningModule, estimator: GradientEstimator, observers: list[SolveObserver], arguments: Sequence[Any]
) -> Tensor:
    """The loss of a training step.

    Args:
        module: The module, which is left with the estimator.
        estimator: What finds the fixed points.
        observers: Look on.
        arguments: Those of ``training_step``.

    Raises:
        UserError: If it returns no loss.
    """
    module.estimator = estimator  # type: ignore[assignment]
    estimator.observers = observers
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices):
        torch.manual_seed(SEED)
        output = type(module).training_step(module, *arguments)
    loss = output["loss"] if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise UserError(
            f"{type(module).__name__}: training_step returned {type(loss).__name__}, but an audit needs the loss."
        )
    return loss


def gradient_of(
    module: LightningModule, estimator: GradientEstimator, arguments: Sequence[Any], observers: list[SolveObserver]
) -> tuple[Tensor, float]:
    """Takes the gradient of a training step on a copy of the module.

    Args:
        module: The module.
        estimator: What takes its gradient.
        arguments: Those of its ``training_step``.
        observers: Look on.

    Returns:
        The gradient of all parameters, float64, zero where there is none, and the seconds that it took.
    """
    module = copy_of(module)
    with estimator.policy.ignoring(*Failure):
        start = time.perf_counter()
        loss = loss_of(module, estimator, observers, arguments)
        with torch.autocast(module.device.type, enabled=False):
            loss.backward()  # type: ignore[no-untyped-call]
        leaves = [
            (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).double().cpu().flatten()
            for parameter in module.parameters()
            if parameter.requires_grad
        ]
        seconds = time.perf_counter() - start
    return torch.cat(leaves), seconds
