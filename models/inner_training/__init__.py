"""Training of a network as an update that runs to a fixed point."""

from models.inner_training.mlp import MLP
from models.inner_training.momentum_sgd import MomentumSGD
from models.inner_training.objective import LOSSES, InnerObjective
from models.inner_training.update import SGDUpdate, share_of

__all__ = ["LOSSES", "MLP", "InnerObjective", "MomentumSGD", "SGDUpdate", "share_of"]
