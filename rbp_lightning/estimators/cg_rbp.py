"""Conjugate-gradient RBP."""

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.normal_cg import NormalCG
from rbp_lightning.solvers import FixedPointSolver


class CGRBP(Implicit):
    """Recurrent back-propagation by conjugate gradients on (I - J)(I - J^T) z = (I - J) g (paper, section 3.2).

    The normal equations are positive definite whatever J is, as long as 1 is no eigenvalue of it; the adjoint residual
    ||g - (I - J^T) z|| falls with every step. A step costs one product with J and one with J^T.

    Args:
        steps: Most conjugate-gradient steps, at least 1.
        tol: Adjoint residual over the norm of g at which a sample has converged; 0 runs exactly ``steps``. Samples
            rest at 0.9 of it, since the updated residual differs from the true one by rounding.
        check_every: Steps between two convergence checks, as ``Picard``'s.
        solver: Forward solver that finds the fixed point; ``None`` is ``Auto()``.

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
