"""The gradient of a module's training step with a given estimator."""

import copy
import time
from collections.abc import Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.overrides import TorchFunctionMode

from rbp_lightning.errors import UserError
from rbp_lightning.estimators import GradientEstimator, observing
from rbp_lightning.estimators.observer import MakeObserver, SolveObserver
from rbp_lightning.reporting import ignoring

SEED = 0
"""The seed of each training step, so that all estimators see the same random numbers."""


class _WithoutGraphs(TorchFunctionMode):
    """Lets tensors that have a graph, such as a normalised weight, be deep-copied without it.

    PyTorch refuses to deep-copy them.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and args[0].grad_fn is not None:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def copy_of(module: LightningModule) -> LightningModule:
    """Copies a module, with its Trainer.

    Args:
        module: The module.

    Raises:
        UserError: If it cannot be copied.
    """
    trainer, module._trainer = module._trainer, None
    try:
        with _WithoutGraphs():
            copied = copy.deepcopy(module)
    except Exception as error:  # whatever an attribute's own copying raises
        raise UserError(
            f"{type(module).__name__} cannot be copied, which an audit needs: remove what prevents it, such as open "
            f"files. ({type(error).__name__}: {error})"
        ) from error
    finally:
        module._trainer = trainer
    copied.trainer = module.trainer
    return copied


def loss_of(
    module: LightningModule,
    estimator: GradientEstimator,
    arguments: Sequence[Any],
    make_observer: MakeObserver = SolveObserver,
) -> Tensor:
    """Computes the loss of a training step, without warnings.

    Args:
        module: A copy of the module, whose estimator is replaced.
        estimator: The estimator, whose solver finds the fixed points.
        arguments: The arguments of ``training_step``.
        make_observer: Makes the observer of each solve.

    Raises:
        UserError: If the training step returns no loss.
    """
    estimator.serve(module)
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), ignoring(), observing(make_observer):
        torch.manual_seed(SEED)
        output = type(module).training_step(module, *arguments)
    loss = output.get("loss") if isinstance(output, dict) else output
    if not isinstance(loss, Tensor):
        raise UserError(
            f"{type(module).__name__}: training_step returned {type(loss).__name__}, but an audit needs a loss."
        )
    return loss


def gradient_of(
    module: LightningModule,
    estimator: GradientEstimator,
    arguments: Sequence[Any],
    make_observer: MakeObserver = SolveObserver,
) -> tuple[Tensor, float]:
    """Computes the gradient of a training step.

    Args:
        module: A copy of the module, whose estimator and gradients are replaced.
        estimator: The estimator.
        arguments: The arguments of ``training_step``.
        make_observer: Makes the observer of each solve.

    Returns:
        The gradient of all parameters as a float64 vector, zero for those without one, and the time in seconds.

    Raises:
        UserError: If the training step returns no loss.
    """
    start = time.perf_counter()
    loss = loss_of(module, estimator, arguments, make_observer)
    with torch.autocast(module.device.type, enabled=False):
        loss.backward()  # type: ignore[no-untyped-call]
    leaves = [
        (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).to_dense().double().cpu().flatten()
        for parameter in module.parameters()
        if parameter.requires_grad
    ]
    return torch.cat(leaves), time.perf_counter() - start
