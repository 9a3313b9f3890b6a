"""Richardson's iteration."""

from typing import Literal

import torch

from rbp_lightning.errors import check_choice, check_count, check_number, check_seed
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.iteration import iterate_adjoint
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector, norm, scale


class Richardson(LinearSolver):
    """Richardson's iteration z <- J^T z + g, the iteration of recurrent back-propagation (paper, algorithm 1).

    It converges if the spectral radius of J is below 1. The change of z is the residual at the previous z, which is
    returned once it has converged, since another step could increase the residual if ||J|| is above 1. If ``tol`` is 0,
    the reported residual is that of the last z but one.

    Args:
        steps: Maximum number of products with J^T, at least 1.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``steps`` steps.
        start: The initial z: ``"uniform"`` draws from U[0, 1] times the root mean square of g; ``"gradient"`` is g.
        seed: Seed of ``"uniform"``, which draws the same numbers in every solve.
        check_every: Steps between two convergence checks.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> Richardson(steps=30, tol=1e-6).solve(operator, [torch.ones(2)]).vector
        [tensor([2.0000, 2.0000])]
    """

    def __init__(
        self,
        steps: int = 20,
        tol: float = 1e-4,
        start: Literal["uniform", "gradient"] = "gradient",
        seed: int = 0,
        check_every: int = 10,
    ) -> None:
        self.steps = check_count(self, "steps", steps, 1)
        self.tol = check_number(self, "tol", tol, 0.0)
        self.start = check_choice(self, "start", start, ("uniform", "gradient"))
        self.seed = check_seed(self, "seed", seed)
        self.check_every = check_count(self, "check_every", check_every, 1)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Iterates until every sample has converged, for at most ``steps`` steps."""
        first = self._first(gradient, operator.batch_dims) if start is None else start
        return iterate_adjoint(operator, gradient, first, self.steps, self.tol, self.check_every)

    def _first(self, gradient: Vector, batch_dims: int) -> Vector:
        if self.start == "gradient":
            return gradient
        size = norm(gradient, batch_dims)
        count = sum(leaf.shape[batch_dims:].numel() for leaf in gradient)
        generator = torch.Generator().manual_seed(self.seed)
        # Drawn on the CPU, so that every device sees the same numbers.
        drawn = [torch.rand(leaf.shape, dtype=leaf.dtype, generator=generator) for leaf in gradient]
        return scale(size / count**0.5, [one.to(leaf.device) for one, leaf in zip(drawn, gradient, strict=True)])
