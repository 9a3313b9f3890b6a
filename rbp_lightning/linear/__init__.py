"""The Jacobian as an operator, and solvers of the adjoint equation (I - J^T) z = g: one file each."""

from rbp_lightning.linear.adaptive_neumann_series import AdaptiveNeumannSeries
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.conjugate_gradient import ConjugateGradient
from rbp_lightning.linear.direct import Direct
from rbp_lightning.linear.jacobian import JacobianOperator, pull_back
from rbp_lightning.linear.neumann_series import NeumannSeries
from rbp_lightning.linear.richardson import Richardson
from rbp_lightning.linear.spectrum import NormBounds, SpectralRadius, norm_bounds, spectral_radius

__all__ = [
    "AdaptiveNeumannSeries",
    "ConjugateGradient",
    "Direct",
    "JacobianOperator",
    "LinearSolution",
    "LinearSolver",
    "NeumannSeries",
    "NormBounds",
    "Richardson",
    "SpectralRadius",
    "norm_bounds",
    "pull_back",
    "spectral_radius",
]
