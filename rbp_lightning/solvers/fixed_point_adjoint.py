"""Solves the adjoint equation with a forward solver."""

from rbp_lightning.errors import UserError, check_instance
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.iteration import iterate_adjoint
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers.auto import Auto
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.picard import Picard


class FixedPointAdjoint(LinearSolver):
    """Solves the adjoint equation with a forward solver, since z = J^T z + g is a fixed point too.

    Args:
        solver: The forward solver. Its ``max_steps`` limits the number of products with J^T, and its ``tol`` is
            relative to the norm of g; ``atol`` is not used, and ``per_leaf`` is that of the forward solve. ``None`` is
            ``Auto(tol=1e-4)``.

    Raises:
        UserError: If ``solver`` is not a forward solver, or is ``NewtonKrylov``.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> FixedPointAdjoint(Anderson(tol=1e-6)).solve(operator, [torch.ones(2)]).vector
        [tensor([2.0000, 2.0000])]
    """

    def __init__(self, solver: FixedPointSolver | None = None) -> None:
        if solver is not None:
            check_instance(self, "solver", solver, FixedPointSolver, "one, such as Anderson()")
        self.solver = Auto(tol=1e-4) if solver is None else solver
        if self.solver.probes:
            raise UserError(
                f"FixedPointAdjoint: solver={type(self.solver).__name__} would linearise an equation that is linear "
                "already: use GMRES() instead."
            )

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Iterates until every sample has converged, for at most ``max_steps`` steps."""
        first = gradient if start is None else start
        solver = self.solver
        graph_steps = solver.graph_steps if isinstance(solver, Picard) else 0
        return iterate_adjoint(
            operator, gradient, first, solver.max_steps, solver.tol, solver.check_every, solver, graph_steps
        )
