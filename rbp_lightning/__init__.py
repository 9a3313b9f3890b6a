"""Gradient estimators for networks that run to a fixed point, as PyTorch Lightning callbacks."""

from rbp_lightning.audit import AuditTrainer, GradientAudit
from rbp_lightning.errors import ConvergenceError, ConvergenceWarning, UserError
from rbp_lightning.estimators import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ExactAdjoint,
    GradientEstimator,
    ImplicitEstimator,
    NeumannRBP,
    SolveObserver,
)
from rbp_lightning.failures import Failure
from rbp_lightning.fixed_point import FixedPoint, Status
from rbp_lightning.flat_jacobian import FlatJacobian
from rbp_lightning.linalg import Linearization
from rbp_lightning.monitor import EquilibriumMonitor
from rbp_lightning.nn import (
    FrobeniusNormBound,
    InfinityNormBound,
    SparseMatrix,
    SpectralNormBound,
    column_sum_penalty,
    jacobian_penalty,
)
from rbp_lightning.policy import FailurePolicy
from rbp_lightning.solvers import FixedPointSolver, Picard
from rbp_lightning.spectrum import norm_bounds, spectral_radius
from rbp_lightning.warm_start import WarmStart

__all__ = [
    "BPTT",
    "CGRBP",
    "RBP",
    "TBPTT",
    "AdaptiveNeumann",
    "AuditTrainer",
    "ConvergenceError",
    "ConvergenceWarning",
    "EquilibriumMonitor",
    "ExactAdjoint",
    "Failure",
    "FailurePolicy",
    "FixedPoint",
    "FixedPointSolver",
    "FlatJacobian",
    "FrobeniusNormBound",
    "GradientAudit",
    "GradientEstimator",
    "ImplicitEstimator",
    "InfinityNormBound",
    "Linearization",
    "NeumannRBP",
    "Picard",
    "SolveObserver",
    "SparseMatrix",
    "SpectralNormBound",
    "Status",
    "UserError",
    "WarmStart",
    "column_sum_penalty",
    "jacobian_penalty",
    "norm_bounds",
    "spectral_radius",
]
