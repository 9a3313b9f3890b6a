"""Forward solvers, and the loop that they share."""

from rbp_lightning.solvers.anderson import Anderson
from rbp_lightning.solvers.auto import Auto
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.broyden import Broyden
from rbp_lightning.solvers.damped import Damped
from rbp_lightning.solvers.fixed_point_adjoint import FixedPointAdjoint
from rbp_lightning.solvers.newton_krylov import NewtonKrylov
from rbp_lightning.solvers.nudged_adjoint import NudgedAdjoint
from rbp_lightning.solvers.picard import Picard
from rbp_lightning.solvers.reduced_rank_extrapolation import ReducedRankExtrapolation
from rbp_lightning.solvers.solve import Solve
from rbp_lightning.state_function import Update

__all__ = [
    "Anderson",
    "Auto",
    "Broyden",
    "Damped",
    "FixedPointAdjoint",
    "FixedPointSolver",
    "NewtonKrylov",
    "NudgedAdjoint",
    "Picard",
    "ReducedRankExtrapolation",
    "Solve",
    "Update",
]
