"""Running an inner training."""

import torch
from torch import nn

from models.inner_training import SGDUpdate
from rbp_lightning import Failure, FixedPoint, GradientEstimator, ignoring


def run_inner_training(
    estimator: GradientEstimator, update: SGDUpdate, network: nn.Module, seed: int, device: torch.device
) -> FixedPoint:
    """Trains a network, and leaves the global random state unchanged.

    Args:
        estimator: Runs and differentiates the training.
        update: The step.
        network: The network whose parameters the training starts from.
        seed: Seed of the network's random numbers.
        device: Device of the training.

    Returns:
        The last state.
    """
    start = update.start(network)
    devices = [device] if device.type == "cuda" else []
    # Growing changes are no failure of a training, and the caller handles one that is not finite.
    with torch.random.fork_rng(devices), ignoring(Failure.DIVERGED, Failure.NAN):
        torch.manual_seed(seed)
        fixed_point: FixedPoint = estimator(update, start)
    return fixed_point
