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
    module: LightningModule,
    estimator: GradientEstimator,
    arguments: Sequence[Any],
    observer: SolveObserver | None = None,
) -> Tensor:
    """The loss of a training step, without warnings.

    Args:
        module: A copy of the module, which is left with the estimator.
        estimator: What finds the fixed points.
        arguments: Those of ``training_step``.
        observer: Looks on at all solves.

    Raises:
        UserError: If it returns no loss.
    """
    module.estimator = estimator  # type: ignore[assignment]
    estimator.observers = [] if observer is None else [lambda: observer]
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), estimator.policy.ignoring(*Failure):
        torch.manual_seed(SEED)
        output = type(module).training_step(module, *arguments)
    loss = output.get("loss") if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise UserError(
            f"{type(module).__name__}: training_step returned {type(loss).__name__} for a loss, but an audit needs one."
        )
    return loss


def gradient_of(
    module: LightningModule,
    estimator: GradientEstimator,
    arguments: Sequence[Any],
    observer: SolveObserver | None = None,
) -> tuple[Tensor, float]:
    """The gradient of a training step.

    Args:
        module: A copy of the module, which is left with the estimator and the gradient.
        estimator: What takes its gradient.
        arguments: Those of ``training_step``.
        observer: Looks on at all solves.

    Returns:
        The gradient of all parameters, float64, zero where there is none, and the seconds that it took.

    Raises:
        UserError: If there is no loss to differentiate.
    """
    start = time.perf_counter()
    loss = loss_of(module, estimator, arguments, observer)
    with torch.autocast(module.device.type, enabled=False), estimator.policy.ignoring(*Failure):
        loss.backward()  # type: ignore[no-untyped-call]
    leaves = [
        (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).to_dense().double().cpu().flatten()
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    return torch.cat(leaves), time.perf_counter() - start
