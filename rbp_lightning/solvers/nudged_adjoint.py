"""Solves the adjoint equation by equilibrium propagation."""

from dataclasses import replace

import torch
from torch import Tensor

from rbp_lightning.agreement import count_of, everywhere
from rbp_lightning.errors import check_instance, check_number
from rbp_lightning.failures import Failure
from rbp_lightning.linear.adjoint_map import AdjointMap
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.iteration import iterate_adjoint
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.symmetry import is_asymmetric
from rbp_lightning.pytree import Vector, add, scale
from rbp_lightning.reporting import report
from rbp_lightning.solvers.auto import Auto
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.fixed_point_adjoint import FixedPointAdjoint

SHARE = 0.5
"""Tolerance of the nudged states as a fraction of ``tol``; the rest allows for the error of a finite nudge."""


class NudgedAdjoint(LinearSolver):
    """Solves the adjoint equation by equilibrium propagation, for symmetric J: it applies F instead of taking products.

    Let h^b be the fixed point of F(h) + b g. Its derivative with respect to b at 0 is (I - J)^-1 g, which equals z if J
    is symmetric, as it is if F is a gradient step on an energy. Hence z is (h^b - h^-b) / 2b up to O(b^2) (centred:
    Laborieux et al., 2021, arXiv 2006.03824), or (h^b - h*) / b up to O(b) (Scellier and Bengio, 2017,
    arXiv 1602.05179). g is constant, the gradient at h*.

    The nudged states start at h*, which is assumed to be an exact fixed point. The iteration is on the displacement
    (h - h*) / b, so that the tolerance is relative to the nudge. In float32 the rounding error is about 1e-7 h / b,
    while the error of the finite difference grows with b.

    One product with J^T measures the residual of z, which includes the errors of a finite b and of an asymmetric J. If
    it is above the tolerance, two more products test whether J is symmetric, and an asymmetric J is reported.

    Args:
        beta: b, the largest entry of the nudge b g / max |g| of each sample, above 0.
        centred: Whether to nudge in both directions.
        solver: Forward solver for the nudged states. Its ``tol`` is relative to the norm of g, and its ``atol`` is not
            used; ``None`` is ``Auto(tol=1e-3)``. Each step applies F once per direction.

    Raises:
        UserError: If an argument is out of its range, or ``solver`` is ``NewtonKrylov``.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> NudgedAdjoint(solver=Picard(tol=1e-5)).solve(operator, [torch.ones(2)]).vector
        [tensor([2.0000, 2.0000])]
    """

    def __init__(self, beta: float = 0.01, centred: bool = True, solver: FixedPointSolver | None = None) -> None:
        self.beta = check_number(self, "beta", beta, 0.0, low_allowed=False)
        self.centred = check_instance(self, "centred", centred, bool, "true or false")
        self.solver = FixedPointAdjoint(Auto(tol=1e-3) if solver is None else solver).solver

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Iterates the nudged states until every sample has converged, for at most ``max_steps`` steps."""
        before = operator.products
        largest = operator.ravel(gradient).abs().amax(dim=-1)
        largest = largest.clamp_min(torch.finfo(largest.dtype).tiny)
        nudge = scale(1 / largest, gradient)
        first = nudge if start is None else scale(1 / largest, start)
        sides = (self.beta, -self.beta) if self.centred else (self.beta,)
        count = len(sides)
        solver = self.solver
        nudged = iterate_adjoint(
            _Nudged(operator, sides),
            nudge * count,
            first * count,
            solver.max_steps,
            SHARE * solver.tol,
            solver.check_every,
            stepper=solver,
        )
        leaves = len(gradient)
        total = nudged.vector[:leaves]
        if self.centred:
            total = add(total, nudged.vector[leaves:])
        vector = scale(largest / count, total)
        residual = operator.adjoint_residual(gradient, vector)
        solution = LinearSolution(vector, nudged.steps, 0, residual, solver.tol)
        if not everywhere(solution.converged):
            asymmetric = ~(residual <= solver.tol) & is_asymmetric(operator)
            found, samples = count_of(asymmetric)
            if found:
                report(
                    Failure.NOT_POSITIVE_DEFINITE,
                    f"NudgedAdjoint: J is not symmetric in {found} of {samples} samples, so the nudged states do not "
                    "give their adjoint",
                )
        return replace(solution, products=operator.products - before)


class _Nudged(AdjointMap):
    """Replaces J^T d by (F(h* + b d) - F(h*)) / b for each b, to iterate the displacements d = (h - h*) / b.

    Args:
        operator: The Jacobian at h*.
        sides: The values of b; a vector has the leaves of a state for each of them.
    """

    def __init__(self, operator: JacobianOperator, sides: tuple[float, ...]) -> None:
        self._operator, self._sides = operator, sides
        self.batch_dims, self.per_leaf, self.products = operator.batch_dims, operator.per_leaf, 0
        self.epsilon = operator.epsilon / abs(sides[0])  # for states of order 1

    def vjp(self, cotangent: Vector) -> list[Tensor]:
        leaves = len(cotangent) // len(self._sides)
        found: list[Tensor] = []
        for index, side in enumerate(self._sides):
            displacement = cotangent[index * leaves : (index + 1) * leaves]
            change = self._operator.difference([side * leaf for leaf in displacement])
            found += [leaf / side for leaf in change]
        return found
