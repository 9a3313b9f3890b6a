"""Gradient estimators: one file each."""

from rbp_lightning.estimators.adaptive_neumann import AdaptiveNeumann
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.bptt import BPTT
from rbp_lightning.estimators.cg_rbp import CGRBP
from rbp_lightning.estimators.exact_adjoint import ExactAdjoint
from rbp_lightning.estimators.implicit import ImplicitEstimator
from rbp_lightning.estimators.neumann_rbp import NeumannRBP
from rbp_lightning.estimators.observer import SolveObserver
from rbp_lightning.estimators.rbp import RBP
from rbp_lightning.estimators.tbptt import TBPTT

__all__ = [
    "BPTT",
    "CGRBP",
    "RBP",
    "TBPTT",
    "AdaptiveNeumann",
    "ExactAdjoint",
    "GradientEstimator",
    "ImplicitEstimator",
    "NeumannRBP",
    "SolveObserver",
]
