"""Equilibrium propagation."""

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.solvers import FixedPointSolver, NudgedAdjoint


class EquilibriumPropagation(Implicit):
    """Equilibrium propagation: the adjoint from two solves nudged in both directions of g, z = (h^b - h^-b) / 2b.

    For updates with a symmetric Jacobian, such as a gradient step on an energy; otherwise z is wrong, which is detected
    and reported. See ``NudgedAdjoint`` for the method, its sources and its error.

    Args:
        beta: b, the largest entry of the nudge of each sample, above 0.
        centred: Whether to nudge in both directions, with an error of O(b^2); ``false`` nudges in one, with O(b).
        nudged_solver: Forward solver for the nudged states; ``None`` is ``Auto(tol=1e-3)``.
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> estimator = EquilibriumPropagation(nudged_solver=Picard(tol=1e-5))
        >>> estimator(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.0000)
    """

    def __init__(
        self,
        beta: float = 0.01,
        centred: bool = True,
        nudged_solver: FixedPointSolver | None = None,
        solver: FixedPointSolver | None = None,
    ) -> None:
        linear_solver = NudgedAdjoint(beta, centred, nudged_solver)
        super().__init__(linear_solver, solver)
        self.beta, self.centred, self.nudged_solver = beta, centred, linear_solver.solver
