"""The adjoint from fixed points that are nudged along the gradient."""

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
"""Share of the tolerance that the nudged states are solved to; the rest is for what a finite nudge makes wrong."""


class NudgedAdjoint(LinearSolver):
    """Solves the adjoint equation by equilibrium propagation, for a symmetric J: it applies F, and takes no products.

    Where h* = F(h*), let h^b be the fixed point of F(h) + b g. It moves with b by (I - J)^-1 g, which is z where J is
    symmetric, as it is where F is a gradient step on an energy. So z is (h^b - h^-b) / 2b up to O(b^2) (centred:
    Laborieux et al., 2021, arXiv 2006.03824), or (h^b - h*) / b up to O(b) (Scellier and Bengio, 2017,
    arXiv 1602.05179). g is that of h* throughout, as the backward pass has it.

    The nudged states start next to h*, which is taken for an exact fixed point. What they are iterated by is the
    displacement from it in units of b, so that a tolerance is relative to the nudge. In float32 the result has a
    rounding error of some 1e-7 h / b, against which stands the error of a large b.

    One product with J^T measures the residual of z, which contains what a finite b and an asymmetric J make wrong.
    Where it is above the tolerance, two more products tell whether J is symmetric, and it is reported if it is not.

    Args:
        beta: b, the largest entry of the nudge b g / max |g| of each sample, above 0.
        centred: Whether to nudge to both sides.
        solver: Forward solver of the nudged states; its ``tol`` is relative to the norm of g, and its ``atol`` is not
            used. ``None`` is ``Auto(tol=1e-3)``. A step applies F once to each side.

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
        """Iterates the nudged states until every sample has converged or the solver's steps are spent."""
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
                    f"NudgedAdjoint: J is not symmetric in {found} of {samples} samples, so nudged states do "
                    "not tell the adjoint there",
                )
        return replace(solution, products=operator.products - before)


class _Nudged(AdjointMap):
    """(F(h* + b d) - F(h*)) / b for each side b in place of J^T d, which iterates displacements (h - h*) / b.

    Args:
        operator: The operator at h*.
        sides: The values of b; vectors have the leaves of a state for each.
    """

    def __init__(self, operator: JacobianOperator, sides: tuple[float, ...]) -> None:
        self._operator, self._sides = operator, sides
        self.batch_dims, self.per_leaf, self.products = operator.batch_dims, operator.per_leaf, 0
        self.epsilon = operator.epsilon / abs(sides[0])  # of states of order 1

    def vjp(self, cotangent: Vector) -> list[Tensor]:
        leaves = len(cotangent) // len(self._sides)
        found: list[Tensor] = []
        for index, side in enumerate(self._sides):
            displacement = cotangent[index * leaves : (index + 1) * leaves]
            change = self._operator.difference([side * leaf for leaf in displacement])
            found += [leaf / side for leaf in change]
        return found
