"""The Jacobian as a linear operator, and solvers of the adjoint equation (I - J^T) z = g."""

from rbp_lightning.linear.adaptive_neumann_series import AdaptiveNeumannSeries
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.bicgstab import BiCGSTAB
from rbp_lightning.linear.conjugate_gradient import ConjugateGradient
from rbp_lightning.linear.damped_neumann_series import DampedNeumannSeries
from rbp_lightning.linear.dense import Dense
from rbp_lightning.linear.direct import Direct
from rbp_lightning.linear.gmres import GMRES, GMRESResult, gmres
from rbp_lightning.linear.jacobian import JacobianOperator, pull_back
from rbp_lightning.linear.neumann_series import NeumannSeries
from rbp_lightning.linear.normal_cg import NormalCG
from rbp_lightning.linear.nystrom import Nystrom
from rbp_lightning.linear.richardson import Richardson
from rbp_lightning.linear.spectrum import NormBounds, SpectralRadius, norm_bounds, spectral_radius
from rbp_lightning.linear.stochastic_neumann_series import StochasticNeumannSeries

__all__ = [
    "GMRES",
    "AdaptiveNeumannSeries",
    "BiCGSTAB",
    "ConjugateGradient",
    "DampedNeumannSeries",
    "Dense",
    "Direct",
    "GMRESResult",
    "JacobianOperator",
    "LinearSolution",
    "LinearSolver",
    "NeumannSeries",
    "NormBounds",
    "NormalCG",
    "Nystrom",
    "Richardson",
    "SpectralRadius",
    "StochasticNeumannSeries",
    "gmres",
    "norm_bounds",
    "pull_back",
    "spectral_radius",
]
