"""Picard iteration."""

from typing import Any

from rbp_lightning.errors import UserError, check_count
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
        graph_steps: Steps in a CUDA graph, from 2 on, for updates so small that launching their kernels is what takes
            the time; 0 for none. They are captured anew in each solve once it has taken twice as many, so long solves
            gain, without a tape and as an adjoint solver; up to so many steps are taken in vain at the end. Of no
            effect on other devices.

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
            raise UserError("Picard: graph_steps=1 saves no launches: take 10, or 0 for no CUDA graphs.")

    def step(self, vector: Vector, image: Vector, memory: Any) -> tuple[Vector, Any]:
        """Takes F(h) for the next iterate."""
        return image, memory
