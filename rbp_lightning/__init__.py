"""Gradient estimators for networks that run to a fixed point, as PyTorch Lightning callbacks."""

from rbp_lightning.contraction import (
    FrobeniusNormBound,
    InfinityNormBound,
    SpectralNormBound,
    column_sum_penalty,
    jacobian_penalty,
)
from rbp_lightning.errors import ConvergenceWarning, UserError
from rbp_lightning.estimators import BPTT, CGRBP, RBP, TBPTT, GradientEstimator, ImplicitEstimator, NeumannRBP
from rbp_lightning.fixed_point import FixedPoint, Status
from rbp_lightning.solvers import FixedPointSolver, Picard
from rbp_lightning.sparse import SparseMatrix
from rbp_lightning.warm_start import WarmStart

__all__ = [
    "BPTT",
    "CGRBP",
    "RBP",
    "TBPTT",
    "ConvergenceWarning",
    "FixedPoint",
    "FixedPointSolver",
    "FrobeniusNormBound",
    "GradientEstimator",
    "ImplicitEstimator",
    "InfinityNormBound",
    "NeumannRBP",
    "Picard",
    "SparseMatrix",
    "SpectralNormBound",
    "Status",
    "UserError",
    "WarmStart",
    "column_sum_penalty",
    "jacobian_penalty",
]
