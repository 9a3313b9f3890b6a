"""The adjoint by the inverse Jacobian that a forward solve has learned."""

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


class SharedInverse(LinearSolver):
    """Solves the adjoint equation by the inverse B of the Jacobian of F(h) - h that Broyden's method has learned.

    z = -B^T g, or g where that is much larger; then Broyden's steps on z = J^T z + g, which go on from B^T. Without a
    forward solve to share with, B is -I.

    Args:
        steps: Most steps, of one product with J^T each.
        tol: Relative residual at which a sample has converged; 0 takes exactly ``steps``.
        fallback: How many times as large as g the first z may be, at least 1.
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
        """The same solver with what a forward solve by ``Broyden`` learns.

        Args:
            solve: The solve, before it begins.
        """
        shared = copy.copy(self)
        shared._frozen = solve.frozen
        solve.at_end = shared._learn
        return shared

    def _learn(self, inverse: InverseJacobian) -> None:
        self._inverse = inverse

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Takes steps until every sample has converged or ``steps`` are spent."""
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
        kept = size <= largest  # NaN is not
        if frozen is not None and frozen.mask is not None:
            kept = kept & ~frozen.mask  # F is constant there, and J is 0
        return where(kept, shared, gradient)


class _Refinement:
    """Broyden's steps that begin with the transposed inverse of another solve.

    Args:
        inverse: The inverse; ``None`` is -I.
        is_transposed: Whether the transposed adjoint equation is solved, and the inverse is not to be transposed.
        steps: Most steps.
    """

    def __init__(self, inverse: InverseJacobian | None, is_transposed: bool, steps: int) -> None:
        self._inverse, self._is_transposed, self._steps, self._broyden = inverse, is_transposed, steps, Broyden()

    def init(self, vector: Vector, batch_dims: int) -> InverseJacobian:
        """What the forward solve has learned, where its samples are those of the adjoint."""
        inverse = self._inverse
        if inverse is None or inverse.batch_dims != batch_dims:
            return self._broyden.init(vector, batch_dims)
        transposed = inverse.transposed(room=self._steps)
        return transposed.transposed(room=self._steps) if self._is_transposed else transposed

    def step(self, vector: Vector, image: Vector, memory: InverseJacobian) -> tuple[Vector, InverseJacobian]:
        """As ``Broyden``'s."""
        return self._broyden.step(vector, image, memory)

    def after_check(
        self, step: int, schedule: CheckSchedule, vector: Vector, image: Vector, memory: InverseJacobian
    ) -> InverseJacobian:
        """Learns nothing from it."""
        return memory
