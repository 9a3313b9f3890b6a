"""Running an inner training."""

import torch
from torch import nn

from models.inner_training import SGDUpdate
from rbp_lightning import Failure, FixedPoint, GradientEstimator, ignoring


def run_inner_training(
    estimator: GradientEstimator, update: SGDUpdate, network: nn.Module, seed: int, device: torch.device
) -> FixedPoint:
    """Trains a network. The global random state is left as it was.

    Args:
        estimator: Runs the training and differentiates it.
        update: The step.
        network: The network whose parameters are the starting point.
        seed: Seed of what the network draws.
        device: Device of the training.

    Returns:
        The last state.
    """
    start = update.start(network)
    devices = [device] if device.type == "cuda" else []
    # A training that speeds up before it settles is no failure. The caller handles one that is not finite.
    with torch.random.fork_rng(devices), ignoring(Failure.DIVERGED, Failure.NAN):
        torch.manual_seed(seed)
        fixed_point: FixedPoint = estimator(update, start)
    return fixed_point
