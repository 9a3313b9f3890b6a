"""Fixed points and their gradients: deep equilibrium models and implicit layers for PyTorch Lightning."""

from rbp_lightning.diagnostics import AuditTrainer, EquilibriumMonitor, FailurePolicy, GradientAudit
from rbp_lightning.errors import ConvergenceError, ConvergenceWarning, UserError
from rbp_lightning.estimators import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ExactAdjoint,
    GradientEstimator,
    Implicit,
    MissingEstimatorError,
    NeedsEstimator,
    NeumannRBP,
    SolveObserver,
    WarmStart,
    estimator_from_checkpoint,
    observing,
)
from rbp_lightning.failures import Failure
from rbp_lightning.fixed_point import FixedPoint
from rbp_lightning.layer import FixedPointLayer
from rbp_lightning.linear import JacobianOperator, LinearSolution, LinearSolver, norm_bounds, spectral_radius
from rbp_lightning.nn import (
    FrobeniusNormBound,
    InfinityNormBound,
    SparseMatrix,
    SpectralNormBound,
    column_sum_penalty,
    jacobian_penalty,
)
from rbp_lightning.reporting import ignoring
from rbp_lightning.solvers import FixedPointSolver, Picard
from rbp_lightning.status import Status
from rbp_lightning.version import __version__

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
    "FixedPointLayer",
    "FixedPointSolver",
    "FrobeniusNormBound",
    "GradientAudit",
    "GradientEstimator",
    "Implicit",
    "InfinityNormBound",
    "JacobianOperator",
    "LinearSolution",
    "LinearSolver",
    "MissingEstimatorError",
    "NeedsEstimator",
    "NeumannRBP",
    "Picard",
    "SolveObserver",
    "SparseMatrix",
    "SpectralNormBound",
    "Status",
    "UserError",
    "WarmStart",
    "__version__",
    "column_sum_penalty",
    "estimator_from_checkpoint",
    "ignoring",
    "jacobian_penalty",
    "norm_bounds",
    "observing",
    "spectral_radius",
]
