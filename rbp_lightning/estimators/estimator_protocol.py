"""The protocol of gradient estimators."""

from typing import Protocol

from rbp_lightning.estimators.adjoint_record import AdjointRecord
from rbp_lightning.estimators.derivative_request import Attach, DerivativeRequest
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver, Solve


class Estimator(Protocol):
    """A gradient estimator; see ``GradientEstimator``."""

    solver: FixedPointSolver

    def differentiate(self, solve: Solve, record: AdjointRecord) -> Vector:
        """Finds the fixed point with gradients enabled."""

    def differentiate_to_order(self, solve: Solve, record: AdjointRecord, request: DerivativeRequest) -> Attach:
        """Finds the fixed point for other derivatives than first ones in reverse mode."""

    def check_max_steps(self, max_steps: int) -> None:
        """Checks that the number of steps is large enough for the estimator."""

    def taped_steps(self, step: int) -> int:
        """Number of steps through which an intermediate state is differentiated."""
