"""GMRES, the generalised minimal residual method."""

from collections.abc import Callable
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor

from rbp_lightning.agreement import largest_of
from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_count, check_number
from rbp_lightning.linear.base import LinearSolution, LinearSolver, rounding_floors
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.krylov_space import KrylovSpace
from rbp_lightning.linear.relative_residual import RelativeResidual
from rbp_lightning.linear.verification import Verification
from rbp_lightning.pytree import Vector
from rbp_lightning.status import Status

Measure: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""Computes the relative residual of each sample from its residual vector and solution."""


class GMRES(LinearSolver):
    """Restarted GMRES (Saad, Iterative Methods for Sparse Linear Systems, 2003, algorithm 6.11).

    For any J; it finds the z in the Krylov space with the smallest residual. A step costs one product with J^T, and a
    restart one more; products with J are not needed. Near spectral radius 1 it needs far fewer products than
    Richardson's iteration, but stores one state for each step since the last restart. Restarting can make it stagnate;
    if so, increase ``restart`` or use ``NormalCG``.

    Args:
        steps: Maximum number of steps, at least 1.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``steps`` steps.
        restart: Number of steps after which it restarts, at least 1; as many states are stored.
        check_every: Steps between two convergence checks.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(4), batch_dims=0)
        >>> GMRES().solve(operator, [torch.ones(4)]).vector
        [tensor([2., 2., 2., 2.])]
    """

    def __init__(self, steps: int = 100, tol: float = 1e-4, restart: int = 20, check_every: int = 10) -> None:
        self.steps = check_count(self, "steps", steps, 1)
        self.tol = check_number(self, "tol", tol, 0.0)
        self.restart = check_count(self, "restart", restart, 1)
        self.check_every = check_count(self, "check_every", check_every, 1)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Takes steps until every sample has converged, at most ``steps``."""
        before = operator.products
        relative = RelativeResidual(gradient, operator.batch_dims, operator.per_leaf)
        found = gmres(
            lambda flat: flat - operator.flat_vjp(flat),
            operator.ravel(gradient),
            None if start is None else operator.ravel(start),
            steps=self.steps,
            tol=self.tol,
            restart=self.restart,
            check_every=self.check_every,
            epsilon=operator.epsilon,
            measure=lambda residual, adjoint: relative(operator.unravel(residual), operator.unravel(adjoint)),
        )
        vector = operator.unravel(found.solution)
        floor = rounding_floors(gradient, vector, operator) if found.finished else None
        known = Status.CONVERGED if found.converged else None
        products = operator.products - before
        return LinearSolution(vector, found.steps, products, found.residual, self.tol, known=known, floor=floor)


class GMRESResult(NamedTuple):
    """The result of ``gmres``.

    Attributes:
        solution: x, ``[*batch, size]``.
        residual: True relative residual per sample, from a product with x.
        steps: Number of steps taken.
        finished: Whether every sample has converged or can make no further progress.
        converged: Whether every sample is known to be within the tolerance.
    """

    solution: Tensor
    residual: Tensor
    steps: int
    finished: bool
    converged: bool


def gmres(
    product: Callable[[Tensor], Tensor],
    right: Tensor,
    start: Tensor | None = None,
    *,
    steps: int,
    tol: float,
    restart: int,
    check_every: int,
    epsilon: float,
    measure: Measure | None = None,
) -> GMRESResult:
    """Solves A x = b by restarted GMRES, for each sample independently.

    Within a cycle the residual is computed from the Hessenberg matrix. At the end of a cycle the true residual is
    computed; if it is above the tolerance because of rounding, another cycle follows.

    Args:
        product: Computes A v for one vector per sample.
        right: b, ``[*batch, size]``, float32 or wider.
        start: The initial x; ``None`` is 0.
        steps: Maximum number of steps, of one product each. Each cycle costs one more product for the true residual.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``steps`` steps.
        restart: Maximum number of steps in a cycle.
        check_every: Steps between two convergence checks.
        epsilon: Relative precision of a product.
        measure: Computes relative residuals; ``None`` is the norm of the residual over that of b.

    Example:
        >>> found = gmres(lambda v: 2 * v, torch.ones(3, 2), steps=9, tol=1e-6, restart=5, check_every=3, epsilon=1e-7)
        >>> found.solution[0], found.converged
        (tensor([0.5000, 0.5000]), True)
    """
    if measure is None:
        measure = _relative_to(right)
    solution = torch.zeros_like(right) if start is None else start
    residual = right if start is None else right - product(start)
    relative = measure(residual, solution)
    # Below tol, since the true residual differs by rounding; not below epsilon, where nothing can be resolved.
    target = max(0.9 * tol, epsilon)
    schedule, offset, step = CheckSchedule(check_every, target if tol > 0 else 0.0, epsilon), 0, 0
    restart = largest_of(min(restart, right.shape[-1]))
    verification = Verification(tol)
    space = KrylovSpace(right, min(restart, steps), target)
    while step < steps:
        space.begin(residual, relative, relative > max(tol, epsilon))
        finished = False
        for _ in range(min(restart, steps - step)):
            space.extend(product)
            step += 1
            if tol > 0 and schedule.should_check(step - offset):
                finished = schedule.is_finished(step - offset, space.relative_residual())
                if finished:
                    break
        solution = solution + space.correction()
        residual = right - product(solution)
        relative = measure(residual, solution)
        if finished:
            if not verification.should_continue(relative):
                return GMRESResult(solution, relative, step, True, verification.converged)
            schedule, offset = CheckSchedule(check_every, target, epsilon), step
    return GMRESResult(solution, relative, step, False, False)


def _relative_to(right: Tensor) -> Measure:
    relative = RelativeResidual([right], right.dim() - 1, per_leaf=False)
    return lambda residual, solution: relative([residual], [solution])
