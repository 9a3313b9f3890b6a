"""The adjoint by a forward solver."""

from rbp_lightning.errors import UserError, check_instance
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.iteration import iterate_adjoint
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers.auto import Auto
from rbp_lightning.solvers.base import FixedPointSolver
from rbp_lightning.solvers.picard import Picard


class FixedPointAdjoint(LinearSolver):
    """Solves the adjoint equation by a forward solver, since z = J^T z + g is a fixed point too.

    Args:
        solver: The forward solver, whose ``max_steps`` limits the products with J^T, and whose ``tol`` is relative to
            the norm of g; ``None`` is ``Auto(tol=1e-4)``. Its ``atol`` is not used, and ``per_leaf`` is that of the
            forward solve.

    Raises:
        UserError: If ``solver`` is no forward solver, or ``NewtonKrylov``.

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
                f"FixedPointAdjoint: solver={type(self.solver).__name__} would linearise what is linear: use GMRES() "
                "in its place."
            )

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Iterates until every sample has converged or the solver's steps are spent."""
        first = gradient if start is None else start
        solver = self.solver
        graph_steps = solver.graph_steps if isinstance(solver, Picard) else 0
        return iterate_adjoint(
            operator, gradient, first, solver.max_steps, solver.tol, solver.check_every, solver, graph_steps
        )
