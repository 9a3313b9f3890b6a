"""Neumann-RBP."""

from collections import deque

from rbp_lightning.adjoint import truncation_error
from rbp_lightning.errors import check_count
from rbp_lightning.estimators.implicit import ImplicitEstimator
from rbp_lightning.linalg import Linearization
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver


class NeumannRBP(ImplicitEstimator):
    """Recurrent back-propagation by a truncated Neumann series, z = sum over k = 0..K of (J^T)^k g.

    Algorithm 2 of the paper. The error is at most ||(I - J)^-1|| ||J||^(K + 1) ||g||; the memory is that of one step.
    A series that leaves out more than the policy's ``truncation_tol``, by ``truncation_error``, is reported.

    Args:
        steps: K, the number of products with J^T; the sum has K + 1 terms.
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Raises:
        UserError: If ``steps`` is negative or not a whole number.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> fixed_point = NeumannRBP(steps=20)(lambda h: weight * h + 1, torch.zeros(()))
        >>> fixed_point.state.backward()
        >>> fixed_point.status.value, weight.grad  # h* = 1 / (1 - weight)
        ('converged', tensor(4.0000))
    """

    def __init__(self, steps: int = 20, solver: FixedPointSolver | None = None) -> None:
        super().__init__(solver)
        self.steps = check_count(self, "steps", steps, 0)

    def solve_adjoint(self, linearization: Linearization, gradient: Vector, start: Vector | None) -> Vector:
        """Sums the first terms of the Neumann series, which has no start to choose."""
        terms: deque[Vector] = deque([gradient], maxlen=3)
        total = [leaf.clone() for leaf in gradient]
        for _ in range(self.steps):
            terms.append(linearization.vjp(terms[-1]))
            for leaf, term in zip(total, terms[-1], strict=True):
                leaf += term  # a new sum would have to be fetched into the cache as well
        residual, estimate = truncation_error(list(terms), self.steps, linearization.batch_dims, total)
        self.report_adjoint(self.steps, residual, error_estimate=estimate)
        return total
