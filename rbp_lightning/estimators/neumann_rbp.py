"""Recurrent back-propagation by a truncated Neumann series."""

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.neumann_series import NeumannSeries
from rbp_lightning.solvers import FixedPointSolver


class NeumannRBP(Implicit):
    """Recurrent back-propagation by a truncated Neumann series, z = sum over k = 0..K of (J^T)^k g.

    Algorithm 2 of the paper. The error is at most ||(I - J)^-1|| ||J||^(K + 1) ||g||, and the memory that of one step.
    An estimated truncation error above the policy's ``truncation_tol`` is reported.

    Args:
        steps: K, the number of products with J^T; the sum has K + 1 terms.
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Raises:
        UserError: If ``steps`` is not an integer of at least 0.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> fixed_point = NeumannRBP(steps=20)(lambda h: weight * h + 1, torch.zeros(()))
        >>> fixed_point.state.backward()
        >>> fixed_point.status.value, weight.grad  # h* = 1 / (1 - weight)
        ('converged', tensor(4.0000))
    """

    def __init__(self, steps: int = 20, solver: FixedPointSolver | None = None) -> None:
        super().__init__(NeumannSeries(steps), solver)
        self.steps = steps
