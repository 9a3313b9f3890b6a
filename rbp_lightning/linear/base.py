"""The interface of linear solvers and their result."""

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
    """Result of solving (I - J^T) z = g.

    Attributes:
        vector: Leaves of z.
        steps: Steps taken.
        products: Products with J and J^T taken.
        residual: ||g - (I - J^T) z|| / ||g|| per sample, as ``RelativeResidual`` has it. Of a number of terms or steps
            that was asked for it is that of the z before the last one, the norm of the last term over that of g: no
            product is spent on more.
        tol: What was to be reached; ``None`` or 0 where only the number of steps was asked for.
        error_bound: Bound on ||z - z*|| / ||z*|| per sample, NaN for samples without one; ``None`` from solvers that
            give none.
        error_estimate: Estimate of the same by ``truncation_error``; ``None`` where no series was truncated.
        known: How it ended where the solver has read that already; ``None`` has ``status`` read the figures.
        floor: Residual per sample up to which it has stalled at rounding and not failed, where the solver found nothing
            left to do; ``None`` where it did not.
        intended: Whether what is left out is the method's own bias, which whoever chose the method has chosen as well:
            a policy does not act on it.

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
        """The largest of the samples' bounds, or else estimates, or else residuals; NaN if any is."""
        if self.error_bound is not None:
            figures = torch.where(self.error_bound.isnan(), self.residual, self.error_bound)
        else:
            figures = self.residual if self.error_estimate is None else self.error_estimate
        return float(figures.max())

    @property
    def status(self) -> Status:
        """How the solve ended, by its tolerance; a number of steps that was asked for ends in ``MAX_STEPS``."""
        if self.known is not None:
            return self.known
        if self.worst <= (self.tol or 0.0):  # NaN is not
            return Status.CONVERGED
        if self.floor is not None and bool((self.residual <= self.floor.clamp_min(self.tol or 0.0)).all()):
            return Status.STALLED
        return Status.MAX_STEPS

    @property
    def converged(self) -> bool:
        """Whether every sample is within the tolerance, or as near to it as rounding allows."""
        return self.status in (Status.CONVERGED, Status.STALLED)


class LinearSolver(ABC):
    """Solves the adjoint equation (I - J^T) z = g, or approximates its solution.

    ``Implicit(linear_solver)`` makes a gradient estimator of it.

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
            gradient: Leaves of g, in float32 or wider; they can be autograd's own and are not to be changed in place.
            start: Leaves of a first z, such as the last solve's; ``None`` leaves it to the solver. Direct methods do
                not use it.

        Returns:
            z, its residual and what it took.
        """


def rounding_floors(gradient: Vector, vector: Vector, operator: AdjointMap) -> Tensor:
    """Residuals, relative to g, up to which rounding can keep z from its tolerance, per sample.

    Near spectral radius 1 z is many times as large as g, and so is the rounding error of a product with it.

    Args:
        gradient: Leaves of g.
        vector: Leaves of z.
        operator: The operator that was solved with.
    """
    ratio = divide(*norms_of([vector, gradient], operator.batch_dims)).clamp_min(1.0)
    return (rounding_floor(operator.epsilon) * ratio).clamp_max(HIGHEST_FLOOR)
