"""Jacobian-free back-propagation."""

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.damped_neumann_series import DampedNeumannSeries
from rbp_lightning.solvers import FixedPointSolver


class JFB(Implicit):
    """Jacobian-free back-propagation: the gradient of one step from the fixed point, z = g.

    It takes no products with the Jacobian and equals ``NeumannRBP(0)``. If ||J|| < 1 and dF/dw is well conditioned, it
    is a descent direction (Fung et al., JFB: Jacobian-free backpropagation for implicit networks, AAAI 2022). Its bias
    is intended, and is not reported as a failure; ``GradientAudit`` measures it.

    Args:
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> JFB()(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # 2 of the true 4
        tensor(2.)
    """

    def __init__(self, solver: FixedPointSolver | None = None) -> None:
        super().__init__(DampedNeumannSeries(1, 1.0), solver)
