"""Picard iteration."""

from typing import Any

from rbp_lightning.errors import UserError, check_count
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers.base import FixedPointSolver


class Picard(FixedPointSolver):
    """Picard iteration h <- F(h), the dynamics of the network itself (paper, section 2).

    Args:
        max_steps: Maximum number of applications of the update, at least 1, including those that an estimator
            differentiates. Unless ``tol`` is 0, the last one only measures the residual of the result.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs ``max_steps`` steps,
            or until no sample is finite.
        check_every: Steps between two convergence checks, each of which synchronises with the device. If at least 6,
            the first check comes after a third of that, and later ones when the residual is predicted to converge, at
            most ``2 * check_every`` steps apart.
        atol: Absolute residual ||F(h) - h|| at which a sample has also converged, for fixed points at zero; ``None`` is
            ``tol / 1000``. Not used if ``tol`` is 0.
        per_leaf: Whether each leaf of the state must converge relative to its own norm; ``false`` uses one norm over
            all leaves, in which a large leaf can hide a small one.
        graph_steps: Number of steps in a CUDA graph, at least 2, for small updates whose run time is dominated by
            kernel launches; 0 uses no graph. Each solve captures the graph after twice as many steps, so only long
            solves benefit, without gradients or as an adjoint solver; at the end up to ``graph_steps`` steps are
            wasted. No effect on other devices.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> fixed_point = NeumannRBP(solver=Picard(max_steps=50, tol=1e-4))(torch.cos, torch.zeros(()))
        >>> fixed_point.status.value, fixed_point.steps
        ('converged', 26)
    """

    def __init__(
        self,
        max_steps: int = 100,
        tol: float = 1e-6,
        check_every: int = 10,
        atol: float | None = None,
        per_leaf: bool = True,
        graph_steps: int = 0,
    ) -> None:
        super().__init__(max_steps, tol, check_every, atol, per_leaf)
        self.graph_steps = check_count(self, "graph_steps", graph_steps, 0)
        if self.graph_steps == 1:
            raise UserError("Picard: graph_steps=1 saves no launches: use 10, or 0 for no CUDA graph.")

    def step(self, vector: Vector, image: Vector, memory: Any) -> tuple[Vector, Any]:
        """The next iterate is F(h)."""
        return image, memory
