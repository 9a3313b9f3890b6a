"""The gradient of a module's training step by an estimator."""

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
"""Of what a training step draws, so that all estimators see the same."""


class _WithoutGraphs(TorchFunctionMode):
    """Copies what was computed, such as a normalised weight or a module's last state, without its graph.

    PyTorch refuses to copy it with its graph.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and args[0].grad_fn is not None:
            return args[0].detach().clone()
        return func(*args, **(kwargs or {}))


def copy_of(module: LightningModule) -> LightningModule:
    """A copy of a module that its Trainer's hooks can be run on, and that leaves the module as it is.

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
            f"{type(module).__name__} cannot be copied, as an audit has to: drop what keeps it from that, such as open "
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
    """The loss of a training step, without warnings.

    Args:
        module: A copy of the module, which is left with the estimator.
        estimator: What finds the fixed points.
        arguments: Those of ``training_step``.
        make_observer: Makes the observer of each solve.

    Raises:
        UserError: If it returns no loss.
    """
    module.estimator = estimator  # type: ignore[assignment]
    devices = [module.device] if module.device.type == "cuda" else []
    with torch.random.fork_rng(devices), ignoring(), observing(make_observer):
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
    make_observer: MakeObserver = SolveObserver,
) -> tuple[Tensor, float]:
    """The gradient of a training step.

    Args:
        module: A copy of the module, which is left with the estimator and the gradient.
        estimator: What takes its gradient.
        arguments: Those of ``training_step``.
        make_observer: Makes the observer of each solve.

    Returns:
        The gradient of all parameters, float64, zero where there is none, and the seconds that it took.

    Raises:
        UserError: If there is no loss to differentiate.
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
