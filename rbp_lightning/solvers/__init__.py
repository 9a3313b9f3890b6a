"""Forward solvers: one file each, and the loop that they share."""

from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.picard import Picard
from rbp_lightning.solvers.solve import Solve
from rbp_lightning.state_function import Update

__all__ = ["FixedPointSolver", "Picard", "Solve", "Update"]
