"""Gradient estimators, and the machinery that they share."""

from rbp_lightning.estimators.adaptive_neumann import AdaptiveNeumann
from rbp_lightning.estimators.attach_gradient import attach_gradient
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.bptt import BPTT
from rbp_lightning.estimators.cg_rbp import CGRBP
from rbp_lightning.estimators.checkpointed_bptt import CheckpointedBPTT
from rbp_lightning.estimators.describe import describe
from rbp_lightning.estimators.equilibrium_propagation import EquilibriumPropagation
from rbp_lightning.estimators.exact_adjoint import ExactAdjoint
from rbp_lightning.estimators.from_checkpoint import estimator_from_checkpoint
from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.estimators.jfb import JFB
from rbp_lightning.estimators.neumann_rbp import NeumannRBP
from rbp_lightning.estimators.observer import SolveObserver, observing
from rbp_lightning.estimators.phantom_gradient import PhantomGradient
from rbp_lightning.estimators.rbp import RBP
from rbp_lightning.estimators.required import MissingEstimatorError, NeedsEstimator
from rbp_lightning.estimators.shine import SHINE
from rbp_lightning.estimators.tbptt import TBPTT
from rbp_lightning.estimators.warm_start import WarmStart

__all__ = [
    "BPTT",
    "CGRBP",
    "JFB",
    "RBP",
    "SHINE",
    "TBPTT",
    "AdaptiveNeumann",
    "CheckpointedBPTT",
    "EquilibriumPropagation",
    "ExactAdjoint",
    "GradientEstimator",
    "Implicit",
    "MissingEstimatorError",
    "NeedsEstimator",
    "NeumannRBP",
    "PhantomGradient",
    "SolveObserver",
    "WarmStart",
    "attach_gradient",
    "describe",
    "estimator_from_checkpoint",
    "observing",
]
