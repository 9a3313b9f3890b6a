"""The adjoint to rounding, at any price."""

import numpy as np
import torch
from scipy.sparse.linalg import LinearOperator, gmres
from torch import Tensor

from rbp_lightning.errors import check_count
from rbp_lightning.estimators.implicit import ImplicitEstimator
from rbp_lightning.flat_jacobian import FlatJacobian
from rbp_lightning.linalg import Linearization
from rbp_lightning.pytree import Vector
from rbp_lightning.solvers import FixedPointSolver

RESTART = 100
"""Dimension of GMRES' Krylov space before it starts again."""


class ExactAdjoint(ImplicitEstimator):
    """Solves the adjoint equation as exactly as the state's precision allows: what others are compared with.

    A state of up to ``dense_size`` elements in a sample is solved for by the QR decomposition of its matrix I - J^T,
    which takes that many products to make; a larger one by SciPy's GMRES, for all samples together. Its gradient is
    that of the fixed point, as near to it as the forward solve came.

    Args:
        dense_size: Most elements of a sample for a dense solution, at least 0.
        max_products: Most products with J^T of GMRES, at least 1.
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, dtype=torch.float64, requires_grad=True)
        >>> estimator = ExactAdjoint(solver=Picard(tol=1e-14))
        >>> estimator(lambda h: weight * h + 1, torch.zeros((), dtype=torch.float64)).state.backward()
        >>> weight.grad  # h* = 1 / (1 - weight)
        tensor(4.0000, dtype=torch.float64)
    """

    def __init__(self, dense_size: int = 512, max_products: int = 5000, solver: FixedPointSolver | None = None) -> None:
        super().__init__(solver)
        self.dense_size = check_count(self, "dense_size", dense_size, 0)
        self.max_products = check_count(self, "max_products", max_products, 1)

    def solve_adjoint(self, linearization: Linearization, gradient: Vector, start: Vector | None) -> Vector:
        """Solves by QR or by GMRES."""
        jacobian = FlatJacobian(linearization, list(gradient))
        right = jacobian.joined(gradient)
        solve = self._dense if jacobian.size <= self.dense_size else self._krylov
        adjoint = jacobian.split(solve(jacobian, right))
        residual = linearization.adjoint_residual(gradient, adjoint)
        # What rounding leaves of a solution to working precision grows with the dimension.
        self.report_adjoint(linearization.products, residual, 100 * linearization.epsilon * jacobian.size**0.5)
        return adjoint

    @staticmethod
    def _dense(jacobian: FlatJacobian, right: Tensor) -> Tensor:
        # torch.linalg.solve is wrong on a CPU with several threads from some 160 unknowns on.
        matrix = torch.eye(jacobian.size, dtype=right.dtype, device=right.device) - jacobian.dense().mT
        orthogonal, triangular = torch.linalg.qr(matrix)
        projected = orthogonal.mT @ right[..., None]
        solution: Tensor = torch.linalg.solve_triangular(triangular, projected, upper=True)
        return solution.squeeze(-1)

    def _krylov(self, jacobian: FlatJacobian, right: Tensor) -> Tensor:
        def product(vector: np.ndarray) -> np.ndarray:
            tensor = torch.from_numpy(vector).to(right).reshape(right.shape)
            difference: np.ndarray = (tensor - jacobian.vjp(tensor)).cpu().numpy().ravel()
            return difference

        flat = right.cpu().numpy().ravel()
        operator = LinearOperator((flat.size, flat.size), matvec=product, dtype=flat.dtype)
        restarts = max(1, self.max_products // RESTART)
        tol = 10 * torch.finfo(right.dtype).eps
        solution, _ = gmres(operator, flat, rtol=tol, restart=min(RESTART, flat.size), maxiter=restarts)
        return torch.from_numpy(solution).to(right).reshape(right.shape)
