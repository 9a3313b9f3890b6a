"""The adjoint to rounding, at any price."""

import torch
from torch import Tensor

from rbp_lightning.errors import UserError, check_count
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.pytree import Vector

RESTART = 100
"""Dimension of GMRES' Krylov space before it restarts."""


class Direct(LinearSolver):
    """Solves the adjoint equation as exactly as the precision allows: the reference for other solvers.

    A state of up to ``dense_size`` elements in a sample is solved for by a QR decomposition of its matrix I - J^T,
    which takes that many products to make; a larger one by SciPy's GMRES, all samples together.

    Args:
        dense_size: Most elements of a sample for a dense solution, at least 0.
        max_products: Most products with J^T of GMRES, at least 1.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> Direct().solve(operator, [torch.ones(2)]).vector
        [tensor([2., 2.])]
    """

    def __init__(self, dense_size: int = 512, max_products: int = 5000) -> None:
        self.dense_size = check_count(self, "dense_size", dense_size, 0)
        self.max_products = check_count(self, "max_products", max_products, 1)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Solves by QR or by GMRES."""
        before = operator.products
        solve = self._dense if operator.size <= self.dense_size else self._gmres
        adjoint = operator.unravel(solve(operator, operator.ravel(gradient)))
        residual = operator.adjoint_residual(gradient, adjoint)
        products = operator.products - before
        # What rounding leaves of a solution to working precision grows with the dimension.
        tol = 100 * operator.epsilon * operator.size**0.5
        return LinearSolution(adjoint, products, products, residual, tol)

    @staticmethod
    def _dense(operator: JacobianOperator, right: Tensor) -> Tensor:
        # torch.linalg.solve was seen wrong on a CPU with several threads from some 160 unknowns on (PyTorch 2.13).
        matrix = torch.eye(operator.size, dtype=right.dtype, device=right.device) - operator.dense().mT
        orthogonal, triangular = torch.linalg.qr(matrix)
        projected = orthogonal.mT @ right[..., None]
        solution: Tensor = torch.linalg.solve_triangular(triangular, projected, upper=True)
        return solution.squeeze(-1)

    def _gmres(self, operator: JacobianOperator, right: Tensor) -> Tensor:
        try:
            from scipy.sparse.linalg import LinearOperator, gmres
        except ImportError as error:
            raise UserError(
                f"Direct: a state of {operator.size} elements (dense_size={self.dense_size}) is solved by SciPy's "
                "GMRES: install scipy, or increase dense_size."
            ) from error

        def product(vector: object) -> object:
            tensor = torch.as_tensor(vector).to(right).reshape(right.shape)
            return (tensor - operator.flat_vjp(tensor)).cpu().numpy().ravel()

        flat = right.cpu().numpy().ravel()
        matrix = LinearOperator((flat.size, flat.size), matvec=product, dtype=flat.dtype)
        restarts = max(1, self.max_products // RESTART)
        tol = 10 * torch.finfo(right.dtype).eps
        solution, _ = gmres(matrix, flat, rtol=tol, restart=min(RESTART, flat.size), maxiter=restarts)
        return torch.from_numpy(solution).to(right).reshape(right.shape)
