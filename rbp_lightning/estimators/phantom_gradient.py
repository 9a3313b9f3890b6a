"""The phantom gradient."""

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.damped_neumann_series import DampedNeumannSeries
from rbp_lightning.solvers import FixedPointSolver


class PhantomGradient(Implicit):
    """The gradient of a few damped steps from the fixed point (Geng et al., On training implicit models, 2021).

    It is the gradient of k steps h <- (1 - d) h + d F(h) from the fixed point, z = d * sum over i = 0..k - 1 of
    ((1 - d) I + d J^T)^i g. All terms use the graph of one step, so memory does not grow with k. With d = 1 it equals
    ``NeumannRBP(k - 1)``. Its bias is intended, and is not reported as a failure; ``FixedPoint.adjoint`` and
    ``EquilibriumMonitor`` estimate it.

    Args:
        steps: k, the number of damped steps, at least 1; they take k - 1 products with J^T.
        damping: d, in (0, 1].
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> PhantomGradient(steps=2, damping=0.5)(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # (1 + 0.75) / 2 times 2 of the true 4
        tensor(1.7500)
    """

    def __init__(self, steps: int = 5, damping: float = 0.5, solver: FixedPointSolver | None = None) -> None:
        super().__init__(DampedNeumannSeries(steps, damping), solver)
        self.steps, self.damping = steps, damping
