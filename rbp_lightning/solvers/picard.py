"""Picard iteration."""

from typing import Any

from rbp_lightning.pytree import Vector
from rbp_lightning.solvers.base import FixedPointSolver


class Picard(FixedPointSolver):
    """Picard iteration h <- F(h), which is the network's own dynamics (paper, section 2).

    Args:
        max_steps: Most applications of the update, at least 1. An estimator that tapes K steps takes them out of
            this number. Unless ``tol`` is 0, the last one measures the residual of the iterate that is returned.
        tol: Relative residual ||F(h) - h|| / ||F(h)|| at which a sample has converged; 0 runs exactly ``max_steps``,
            unless no sample is finite any more.
        check_every: Steps between two convergence checks, each of which waits for the device. From 6 on, the first
            one comes after a third of them, and the others where the residual's decline predicts convergence, at most
            twice as many later.
        atol: Norm of the change ||F(h) - h|| at which a sample has converged whatever its own norm, for fixed points
            at zero; ``None`` is ``tol / 1000``. It is not used where ``tol`` is 0.
        per_leaf: Whether each leaf of a state that has several must converge relative to its own norm; ``false`` takes
            one norm over all of them, in which a large leaf hides a small one.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> fixed_point = NeumannRBP(solver=Picard(max_steps=50, tol=1e-4))(torch.cos, torch.zeros(()))
        >>> fixed_point.status.value, fixed_point.steps
        ('converged', 26)
    """

    def step(self, vector: Vector, image: Vector, memory: Any) -> tuple[Vector, Any]:
        """Takes F(h) for the next iterate."""
        return image, memory
