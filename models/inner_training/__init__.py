"""The training of a network as a fixed-point iteration."""

from models.inner_training.minibatches import Minibatches
from models.inner_training.mlp import MLP
from models.inner_training.momentum_sgd import MomentumSGD
from models.inner_training.objective import LOSSES, InnerObjective
from models.inner_training.shard import local_shard
from models.inner_training.update import OnStep, SGDUpdate, TrainingState

__all__ = [
    "LOSSES",
    "MLP",
    "InnerObjective",
    "Minibatches",
    "MomentumSGD",
    "OnStep",
    "SGDUpdate",
    "TrainingState",
    "local_shard",
]
