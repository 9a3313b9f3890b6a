"""SHINE: shares the inverse Jacobian of the forward solve with the backward pass."""

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.solvers import Broyden, FixedPointSolver, Solve
from rbp_lightning.solvers.shared_inverse import SharedInverse


class SHINE(Implicit):
    """Shares the inverse Jacobian of the forward solve with the backward pass (Ramzi et al., SHINE, ICLR 2022).

    Broyden's method approximates the inverse B of the Jacobian J - I of F(h) - h in the directions of its steps, so
    that z = -B^T g approximates the adjoint without products. If z is much larger than g, B is not accurate in the
    direction of g, and g itself, the gradient of ``JFB``, is used instead (fallback). Broyden's method then refines z
    by solving z = J^T z + g from B^T, with one product per step (refinement). With a warm start, the forward solve
    takes few steps, so B is less accurate, but the last adjoint is refined instead.

    Args:
        steps: Maximum number of refinement steps, of one product with J^T each; with 0, one product measures the
            residual.
        tol: Relative adjoint residual at which a sample has converged; 0 runs exactly ``steps`` steps.
        fallback: Largest ratio ||z|| / ||g|| of the shared z, at least 1.
        check_every: Steps between two convergence checks.
        solver: A ``Broyden`` solver; ``None`` is ``Broyden()``.

    Raises:
        UserError: If an argument is out of its range, or the solver is not ``Broyden``.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> SHINE(steps=0)(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.)
    """

    linear_solver: SharedInverse

    def __init__(
        self,
        steps: int = 5,
        tol: float = 0.0,
        fallback: float = 10.0,
        check_every: int = 10,
        solver: FixedPointSolver | None = None,
    ) -> None:
        super().__init__(SharedInverse(steps, tol, fallback, check_every), Broyden() if solver is None else solver)
        if not isinstance(self.solver, Broyden):
            raise UserError(
                f"SHINE: solver={type(self.solver).__name__} has no inverse Jacobian to share: pass Broyden(), or "
                "use Implicit, which works with any solver."
            )
        self.steps, self.tol, self.fallback, self.check_every = steps, tol, fallback, check_every

    def linear_solver_for(self, solve: Solve) -> SharedInverse:
        """A linear solver with the inverse Jacobian of this forward solve."""
        return self.linear_solver.of(solve)
