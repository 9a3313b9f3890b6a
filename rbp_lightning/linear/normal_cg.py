"""The conjugate gradient method on the normal equations."""

import torch
from torch import Tensor
from torch.linalg import vecdot

from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.recurrence import Recurrence, RecurrentSolver
from rbp_lightning.pytree import Vector


class _CGLS(Recurrence):
    direction: Tensor
    square: Tensor  # squared norm of the residual of the normal equations

    def advance(self, active: Tensor) -> Tensor:
        normal = self.residual - self.operator.flat_jvp(self.residual)
        square = vecdot(normal, normal)
        if self.begins:
            self.direction = normal
        else:
            ratio = torch.where(self.square != 0, square / self.square, 0)
            self.direction = torch.addcmul(normal, ratio[..., None], self.direction)
        self.square = square
        image = self.product(self.direction)
        image_square = vecdot(image, image)
        able: Tensor = image_square != 0
        self.move(torch.where(active & able, square / image_square, 0), self.direction, image)
        return able


class NormalCG(RecurrentSolver):
    """Conjugate gradients on (I - J)(I - J^T) z = (I - J) g (paper, section 3.2).

    The normal equations are positive definite for any J that does not have the eigenvalue 1. This is the CGLS form
    (Bjorck, Numerical Methods for Least Squares Problems, 1996, algorithm 7.4.1), which updates the residual of the
    adjoint equation instead of that of the normal equations: it loses fewer digits, and the norm of the residual over
    all leaves decreases with every step. A step costs one product with J and one with J^T. The condition number of the
    normal equations is the square of that of I - J, which ``GMRES`` avoids.

    Args:
        steps: Maximum number of steps, at least 1.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``steps`` steps. A sample stops at 0.9
            ``tol``, since the residual of the recurrence differs from the true one by rounding.
        check_every: Steps between two convergence checks.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> NormalCG(steps=5).solve(operator, [torch.ones(2)]).vector
        [tensor([2., 2.])]
    """

    def __init__(self, steps: int = 20, tol: float = 1e-4, check_every: int = 10) -> None:
        super().__init__(steps, tol, check_every)

    def begin(self, operator: JacobianOperator, gradient: Vector, start: Vector | None) -> Recurrence:
        """Starts the recurrence of a solve."""
        return _CGLS(operator, gradient, start)
