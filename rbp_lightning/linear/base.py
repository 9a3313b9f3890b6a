"""The interface of linear solvers, and their result."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from rbp_lightning.check_schedule import HIGHEST_FLOOR, rounding_floor
from rbp_lightning.linear.adjoint_map import AdjointMap
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector, divide, norms_of
from rbp_lightning.status import Status


@dataclass(frozen=True)
class LinearSolution:
    """The result of solving (I - J^T) z = g.

    Attributes:
        vector: Leaves of z.
        steps: Number of steps taken.
        products: Number of products with J and J^T taken.
        residual: Relative residual ||g - (I - J^T) z|| / ||g|| per sample; see ``RelativeResidual``. For a fixed number
            of steps or terms it is that of the last z but one, ||last term|| / ||g||, which costs no further product.
        tol: The tolerance; ``None`` or 0 if a number of steps was asked for.
        error_bound: Upper bound on ||z - z*|| / ||z*|| per sample, NaN for samples without one; ``None`` from solvers
            that give no bound.
        error_estimate: Estimate of the same error by ``truncation_error``; ``None`` if no series was truncated.
        known: The status, if the solver knows it already; ``None`` determines ``status`` from the other attributes.
        floor: Residual per sample below which the solve has stalled at the level of rounding instead of failed, if the
            solver could make no further progress; ``None`` otherwise.
        intended: Whether the truncation error is a known bias of the method, which a policy does not act on.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> fixed_point = NeumannRBP(steps=4)(lambda h: weight * h + 1, torch.zeros(()))
        >>> fixed_point.state.backward()
        >>> fixed_point.adjoint.residual, fixed_point.adjoint.error_estimate  # z is 1.9375 of 2
        (tensor(0.0625), tensor(0.0312))
    """

    vector: Vector
    steps: int
    products: int
    residual: Tensor
    tol: float | None = None
    error_bound: Tensor | None = None
    error_estimate: Tensor | None = None
    known: Status | None = None
    floor: Tensor | None = None
    intended: bool = False

    @cached_property
    def worst(self) -> float:
        """The largest error bound, error estimate or residual (the first available) of all samples; NaN if any is."""
        if self.error_bound is not None:
            figures = torch.where(self.error_bound.isnan(), self.residual, self.error_bound)
        else:
            figures = self.residual if self.error_estimate is None else self.error_estimate
        return float(figures.max())

    @property
    def status(self) -> Status:
        """How the solve ended, relative to its tolerance; ``MAX_STEPS`` if a number of steps was asked for."""
        if self.known is not None:
            return self.known
        if self.worst <= (self.tol or 0.0):  # False for NaN
            return Status.CONVERGED
        if self.floor is not None and bool((self.residual <= self.floor.clamp_min(self.tol or 0.0)).all()):
            return Status.STALLED
        return Status.MAX_STEPS

    @property
    def converged(self) -> bool:
        """Whether every sample is within the tolerance, or has stalled at the level of rounding."""
        return self.status in (Status.CONVERGED, Status.STALLED)


class LinearSolver(ABC):
    """Solves the adjoint equation (I - J^T) z = g, or approximates its solution.

    ``Implicit(linear_solver)`` is the gradient estimator that uses it.

    Example:
        >>> class OneTerm(LinearSolver):
        ...     "z = g + J^T g."
        ...     def solve(self, operator, gradient, start=None):
        ...         vector = [g + v for g, v in zip(gradient, operator.vjp(gradient))]
        ...         return LinearSolution(vector, 1, 1, operator.adjoint_residual(gradient, vector))
        >>> weight = torch.tensor(0.25, requires_grad=True)
        >>> Implicit(OneTerm())(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # 5/3 of the true 16/9
        tensor(1.6667)
    """

    @abstractmethod
    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Solves (I - J^T) z = g.

        Args:
            operator: Products with J and J^T.
            gradient: Leaves of g, in float32 or wider. They may belong to autograd and must not be changed in place.
            start: Leaves of an initial z, such as that of the last solve; ``None`` leaves it to the solver. Direct
                methods ignore it.

        Returns:
            The solution z, with its residual and cost.
        """


def rounding_floors(gradient: Vector, vector: Vector, operator: AdjointMap) -> Tensor:
    """Relative residual below which rounding can prevent further convergence, per sample.

    Near spectral radius 1, z is much larger than g, and so is the rounding error of a product with z.

    Args:
        gradient: Leaves of g.
        vector: Leaves of z.
        operator: The products with J^T.
    """
    ratio = divide(*norms_of([vector, gradient], operator.batch_dims)).clamp_min(1.0)
    return (rounding_floor(operator.epsilon) * ratio).clamp_max(HIGHEST_FLOOR)
