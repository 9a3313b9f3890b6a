"""Solves the adjoint equation with the approximate inverse Jacobian of the forward solve."""

import copy

from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_count, check_number
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.iteration import iterate_adjoint
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector, norm, ravel, unravel, where
from rbp_lightning.solvers.broyden import Broyden, InverseJacobian
from rbp_lightning.solvers.frozen_samples import FrozenSamples
from rbp_lightning.solvers.solve import Solve
from rbp_lightning.steps_ahead import Step


class SharedInverse(LinearSolver):
    """Solves the adjoint equation with the approximate inverse B of the Jacobian of F(h) - h from Broyden's method.

    It starts from z = -B^T g, or from g for samples where that is much larger, and refines z by Broyden's method on
    z = J^T z + g, starting with B^T. Without a forward solve by ``Broyden``, B is -I.

    Args:
        steps: Maximum number of steps, of one product with J^T each.
        tol: Relative residual at which a sample has converged; 0 takes exactly ``steps`` steps.
        fallback: Largest ratio ||z|| / ||g|| of the first z, at least 1; a sample with a larger one starts from g.
        check_every: Steps between two convergence checks.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> SharedInverse(steps=3, tol=0.0, fallback=10.0, check_every=1).solve(operator, [torch.ones(2)]).vector
        [tensor([2., 2.])]
    """

    def __init__(self, steps: int, tol: float, fallback: float, check_every: int) -> None:
        self.steps = check_count(self, "steps", steps, 0)
        self.tol = check_number(self, "tol", tol, 0.0)
        self.fallback = check_number(self, "fallback", fallback, 1.0)
        self.check_every = check_count(self, "check_every", check_every, 1)
        self._inverse: InverseJacobian | None = None
        self._frozen: FrozenSamples | None = None

    def of(self, solve: Solve) -> "SharedInverse":
        """This solver with the inverse Jacobian of a forward solve by ``Broyden``.

        Args:
            solve: The solve, before it begins.
        """
        shared = copy.copy(self)
        shared._frozen = solve.frozen
        solve.at_end = shared._set_inverse
        return shared

    def _set_inverse(self, inverse: InverseJacobian) -> None:
        self._inverse = inverse

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Takes steps until every sample has converged, at most ``steps``."""
        first = self._first(operator, gradient) if start is None or self.steps == 0 else start
        if self.steps == 0:
            before = operator.products
            residual = operator.adjoint_residual(gradient, first)
            return LinearSolution(first, 0, operator.products - before, residual, self.tol)
        refinement = _Refinement(self._inverse, operator.is_transposed, self.steps)
        return iterate_adjoint(operator, gradient, first, self.steps, self.tol, self.check_every, refinement)

    def _first(self, operator: JacobianOperator, gradient: Vector) -> Vector:
        inverse, frozen = self._inverse, self._frozen
        if inverse is None or inverse.count == 0:
            return gradient
        flat = ravel(gradient, inverse.batch_dims)
        product = inverse.times(flat) if operator.is_transposed else inverse.transposed_times(flat)
        shared = unravel(-product, gradient)
        size, largest = norm(shared, inverse.batch_dims), self.fallback * norm(gradient, inverse.batch_dims)
        usable = size <= largest  # False for NaN
        if frozen is not None and frozen.mask is not None:
            usable = usable & ~frozen.mask  # F is constant there, and J is 0
        return where(usable, shared, gradient)


class _Refinement:
    """Broyden's method that starts with the transposed inverse Jacobian of another solve.

    Args:
        inverse: The inverse Jacobian; ``None`` is -I.
        is_transposed: Whether the equation to solve is that of J instead of J^T, so that the inverse is not transposed.
        steps: Maximum number of steps.
    """

    def __init__(self, inverse: InverseJacobian | None, is_transposed: bool, steps: int) -> None:
        self._inverse, self._is_transposed, self._steps, self._broyden = inverse, is_transposed, steps, Broyden()

    def init(self, vector: Vector, batch_dims: int) -> InverseJacobian:
        """The forward solve's inverse Jacobian, if the adjoint has the same batch dimensions."""
        inverse = self._inverse
        if inverse is None or inverse.batch_dims != batch_dims:
            return self._broyden.init(vector, batch_dims)
        transposed = inverse.transposed(room=self._steps)
        return transposed.transposed(room=self._steps) if self._is_transposed else transposed

    def step(self, vector: Vector, image: Vector, memory: InverseJacobian) -> tuple[Vector, InverseJacobian]:
        """A step of ``Broyden``."""
        return self._broyden.step(vector, image, memory)

    def after_check(
        self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: InverseJacobian
    ) -> InverseJacobian:
        """Does nothing."""
        return memory

    def propagated(self, vector: Vector, product: Step, memory: InverseJacobian) -> None:
        """Nothing, since each product is with z."""
