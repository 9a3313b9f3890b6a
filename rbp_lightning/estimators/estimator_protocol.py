"""What a call of an estimator needs of it."""

from typing import Protocol

from rbp_lightning.estimators.adjoint_record import AdjointRecord
from rbp_lightning.estimators.derivative_request import Attach, DerivativeRequest
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver, Solve


class Estimator(Protocol):
    """A gradient estimator, as ``GradientEstimator`` describes it."""

    solver: FixedPointSolver

    def differentiate(self, solve: Solve, record: AdjointRecord) -> Vector:
        """Finds the fixed point with gradients enabled."""

    def differentiate_to_order(self, solve: Solve, record: AdjointRecord, request: DerivativeRequest) -> Attach:
        """Finds it where more derivatives are asked for."""

    def check_max_steps(self, max_steps: int) -> None:
        """Refuses a number of steps that is too small for the estimator."""

    def taped_steps(self, step: int) -> int:
        """How many of the steps to a state are taped."""
