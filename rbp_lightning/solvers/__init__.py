"""Forward solvers: one file each."""

from rbp_lightning.solvers.base import FixedPointSolver, Update
from rbp_lightning.solvers.picard import Picard

__all__ = ["FixedPointSolver", "Picard", "Update"]
