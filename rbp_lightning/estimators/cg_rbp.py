"""Conjugate-gradient RBP."""

from rbp_lightning.conjugate_gradient import conjugate_gradient
from rbp_lightning.errors import check_count, check_number
from rbp_lightning.estimators.implicit import ImplicitEstimator
from rbp_lightning.linalg import Linearization
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver


class CGRBP(ImplicitEstimator):
    """Recurrent back-propagation by conjugate gradients on (I - J)(I - J^T) z = (I - J) g (paper, section 3.2).

    The normal equations are positive definite whatever J is, as long as 1 is none of its eigenvalues; the adjoint
    residual ||g - (I - J^T) z|| falls with every step. A step costs one product with J and one with J^T.

    Args:
        steps: Most conjugate-gradient steps, at least 1.
        tol: Adjoint residual over the norm of g at which a sample has converged; 0 runs exactly ``steps``. It
            comes to rest at 0.9 of that, since the residual that is recurred differs from the true one by rounding.
        check_every: Steps between two looks at the residual, as ``Picard``'s.
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> CGRBP()(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.0000)
    """

    def __init__(
        self, steps: int = 20, tol: float = 1e-4, check_every: int = 10, solver: FixedPointSolver | None = None
    ) -> None:
        super().__init__(solver)
        self.steps = check_count(self, "steps", steps, 1)
        self.tol = check_number(self, "tol", tol, 0.0)
        self.check_every = check_count(self, "check_every", check_every, 1)

    def solve_adjoint(self, linearization: Linearization, gradient: Vector, start: Vector | None) -> Vector:
        """Solves the normal equations by conjugate gradients."""
        solution = conjugate_gradient(linearization, gradient, self.steps, self.tol, self.check_every, start)
        self.report_adjoint(solution.steps, solution.residual, self.tol)
        return solution.vector
