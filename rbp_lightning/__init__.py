"""Gradient estimators for networks that run to a fixed point, as PyTorch Lightning callbacks."""

from rbp_lightning.errors import ConvergenceWarning, UserError
from rbp_lightning.estimators import BPTT, CGRBP, RBP, TBPTT, GradientEstimator, ImplicitEstimator, NeumannRBP
from rbp_lightning.fixed_point import FixedPoint, Status
from rbp_lightning.solvers import FixedPointSolver, Picard

__all__ = [
    "BPTT",
    "CGRBP",
    "RBP",
    "TBPTT",
    "ConvergenceWarning",
    "FixedPoint",
    "FixedPointSolver",
    "GradientEstimator",
    "ImplicitEstimator",
    "NeumannRBP",
    "Picard",
    "Status",
    "UserError",
]
