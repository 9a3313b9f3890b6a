"""The forward solver's inverse Jacobian, shared with the backward pass."""

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.solvers import Broyden, FixedPointSolver, Solve
from rbp_lightning.solvers.shared_inverse import SharedInverse


class SHINE(Implicit):
    """Shares the inverse Jacobian of the forward solve with the backward pass (Ramzi et al., SHINE, ICLR 2022).

    Broyden's method learns B, the inverse of the Jacobian J - I of F(h) - h, where its steps go, so that z = -B^T g is
    the adjoint without a product. Where that is much larger than g, B has learned nothing of the direction of g, and g
    itself, the gradient of ``JFB``, takes its place (fallback). From there Broyden's method solves z = J^T z + g, with
    B^T to begin with, by a step for each product (refinement). A warm start leaves the forward solve few steps to learn
    from, and gives the last adjoint to refine.

    Args:
        steps: Most steps of refinement, of one product with J^T each. Of 0 one product measures the residual.
        tol: Adjoint residual over the norm of g at which a sample has converged; 0 runs exactly ``steps``.
        fallback: How many times as large as g the shared z may be, at least 1.
        check_every: Steps between two convergence checks, as ``Picard``'s.
        solver: ``Broyden``, whose memory is shared; ``None`` is ``Broyden()``.

    Raises:
        UserError: If an argument is out of its range, or the solver is no ``Broyden``.

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
                f"SHINE: solver={type(self.solver).__name__} learns no inverse Jacobian to share: pass Broyden(), or "
                "take Implicit, which goes with any solver."
            )
        self.steps, self.tol, self.fallback, self.check_every = steps, tol, fallback, check_every

    def linear_solver_for(self, solve: Solve) -> SharedInverse:
        """One that has what this forward solve learns."""
        return self.linear_solver.of(solve)
