"""Recurrent back-propagation by conjugate gradients."""

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.normal_cg import NormalCG
from rbp_lightning.solvers import FixedPointSolver


class CGRBP(Implicit):
    """Recurrent back-propagation by conjugate gradients on (I - J)(I - J^T) z = (I - J) g (paper, section 3.2).

    The normal equations are positive definite for any J that does not have the eigenvalue 1, and the adjoint residual
    ||g - (I - J^T) z|| decreases with every step. A step costs one product with J and one with J^T.

    Args:
        steps: Maximum number of conjugate gradient steps, at least 1.
        tol: Relative adjoint residual at which a sample has converged; 0 runs exactly ``steps`` steps. A sample stops
            at 0.9 ``tol``, since the residual of the recurrence differs from the true one by rounding.
        check_every: Steps between two convergence checks.
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> CGRBP()(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.)
    """

    def __init__(
        self, steps: int = 20, tol: float = 1e-4, check_every: int = 10, solver: FixedPointSolver | None = None
    ) -> None:
        super().__init__(NormalCG(steps, tol, check_every), solver)
        self.steps, self.tol, self.check_every = steps, tol, check_every
