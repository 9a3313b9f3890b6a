"""BiCGSTAB, the stabilised bi-conjugate gradient method."""

import torch
from torch import Tensor
from torch.linalg import vecdot, vector_norm

from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.recurrence import Recurrence, RecurrentSolver
from rbp_lightning.pytree import Vector


class _BiCGSTAB(Recurrence):
    """The recurrence, in the notation of the literature: rho, alpha, omega, beta, p, s, v = A p and t = A s."""

    shadow: Tensor
    p: Tensor
    v: Tensor
    rho: Tensor
    alpha: Tensor
    omega: Tensor

    def advance(self, active: Tensor) -> Tensor:
        new = self._next_direction()
        self.v = self.product(self.p)
        sigma = vecdot(self.shadow, self.v)
        defined = active & ~_vanishes(sigma, self.shadow, self.v)
        self.alpha = torch.where(defined, self.rho / sigma, 0)
        self.move(self.alpha, self.p, self.v)
        s = self.residual
        t = self.product(s)
        square = vecdot(t, t)
        self.omega = torch.where(active & (square > 0), vecdot(t, s) / square, 0)
        self.move(self.omega, s, t)
        stuck: Tensor = new & (self.alpha == 0) & (self.omega == 0)
        return ~stuck

    def _next_direction(self) -> Tensor:
        """Computes the next direction; returns which samples restart."""
        residual, square = self.residual, vecdot(self.residual, self.residual)
        if self.begins:
            self.shadow, self.p, self.rho = residual, residual, square
            return torch.ones_like(square, dtype=torch.bool)
        rho = vecdot(self.shadow, residual)
        beta = rho / self.rho * (self.alpha / self.omega)
        p = torch.addcmul(self.p, self.omega[..., None], self.v, value=-1)
        p = torch.addcmul(residual, beta[..., None], p)
        new: Tensor = _vanishes(rho, self.shadow, residual) | (self.alpha == 0) | ~beta.isfinite()
        self.shadow = torch.where(new[..., None], residual, self.shadow)
        self.p = torch.where(new[..., None], residual, p)
        self.rho = torch.where(new, square, rho)
        return new


def _vanishes(inner: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Whether an inner product is 0 up to rounding."""
    allowed: Tensor = torch.finfo(inner.dtype).eps * vector_norm(left, dim=-1) * vector_norm(right, dim=-1)
    return inner.abs() <= allowed


class BiCGSTAB(RecurrentSolver):
    """BiCGSTAB (van der Vorst, SIAM J. Sci. Stat. Comput. 13, 1992, section 3; Saad, 2003, algorithm 7.7).

    For any J. It stores a few states, while ``GMRES`` stores ``restart`` of them. A step costs two products with J^T,
    and may increase the residual. If the method breaks down for a sample, because the residual is orthogonal to the
    shadow residual or a step length is 0, the sample restarts with its residual as the shadow residual.

    Args:
        steps: Maximum number of steps, at least 1.
        tol: Relative residual at which a sample has converged; 0 runs exactly ``steps`` steps. A sample stops at 0.9
            ``tol``, since the residual of the recurrence differs from the true one by rounding.
        check_every: Steps between two convergence checks.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> BiCGSTAB(steps=5).solve(operator, [torch.ones(2)]).vector
        [tensor([2., 2.])]
    """

    def __init__(self, steps: int = 50, tol: float = 1e-4, check_every: int = 5) -> None:
        super().__init__(steps, tol, check_every)

    def begin(self, operator: JacobianOperator, gradient: Vector, start: Vector | None) -> Recurrence:
        """Starts the recurrence of a solve."""
        return _BiCGSTAB(operator, gradient, start)
