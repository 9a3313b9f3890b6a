"""A linear solver by the Nystroem approximation, for symmetric Jacobians."""

import torch
from torch import Tensor
from torch.linalg import vector_norm

from rbp_lightning.agreement import count_of, same_everywhere
from rbp_lightning.errors import UserError, check_count, check_number, check_seed
from rbp_lightning.failures import Failure
from rbp_lightning.linear.back_substitution import solve_by_qr
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.relative_residual import RelativeResidual
from rbp_lightning.linear.symmetry import ROUNDING
from rbp_lightning.pytree import Vector
from rbp_lightning.reporting import report


class Nystrom(LinearSolver):
    """Solves with a low-rank approximation of A = I - J from some of its columns, for symmetric J.

    It solves (A_k + rho I) z = g with A_k = C W^+ C^T, where C consists of k random columns of A, and W of the rows of
    C with the same indices (Hataya and Yamada, AISTATS 2023, arXiv 2302.09726). For hypergradients: if F is a gradient
    descent step h - eta dL/dh, A is eta times the Hessian of the loss, which often has a low effective rank. It takes k
    independent products with J^T, and one for the residual; there is no step size to choose.

    The part of g outside the span of C is only divided by rho. The reported residual is that of the equation without
    rho. The paper uses the Woodbury identity; here C is orthogonalised first, which is equal in exact arithmetic and
    allows a small rho in float32.

    A J that is not symmetric, such as that of a gradient step with momentum or with several learning rates, is
    detected without further products and reported.

    Args:
        rank: k, the number of columns, at least 1; all columns if a sample has fewer elements.
        damping: rho, above 0, in the units of I - J, that is eta times a damping of the Hessian.
        seed: Seed for choosing the columns, which are the same in every sample and every solve.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> curvature = torch.tensor([0.5, 0.5, 0.0])
        >>> operator = JacobianOperator.at(lambda h: h - curvature * h, torch.zeros(3), batch_dims=0)
        >>> Nystrom(rank=3, damping=1e-2).solve(operator, [torch.tensor([1.0, 2.0, 0.0])]).vector
        [tensor([1.9608, 3.9216, 0.0000])]
    """

    def __init__(self, rank: int = 10, damping: float = 0.01, seed: int = 0) -> None:
        self.rank = check_count(self, "rank", rank, 1)
        self.damping = check_number(self, "damping", damping, 0.0, low_allowed=False)
        self.seed = check_seed(self, "seed", seed)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Computes the columns and solves; ``start`` is ignored."""
        if not same_everywhere(min(self.rank, operator.size)):
            raise UserError(
                f"Nystrom: rank={self.rank}, but some of the processes that share the update have samples with fewer "
                "elements, and would take fewer products: lower rank."
            )
        before = operator.products
        right = operator.ravel(gradient)
        # Drawn on the CPU, so that every device sees the same numbers.
        generator = torch.Generator().manual_seed(self.seed)
        chosen = torch.randperm(operator.size, generator=generator)[: self.rank].tolist()
        columns = _columns(operator, right, chosen)
        flat = self._solution(columns, chosen, right, operator.epsilon)
        image = flat - operator.flat_vjp(flat)
        _report_asymmetry(columns, chosen, flat, image, operator.epsilon)
        vector = operator.unravel(flat)
        relative = RelativeResidual(gradient, operator.batch_dims, operator.per_leaf)
        residual = relative(operator.unravel(right - image), vector)
        return LinearSolution(vector, len(chosen), operator.products - before, residual)

    def _solution(self, columns: Tensor, chosen: list[int], right: Tensor, epsilon: float) -> Tensor:
        size, count = columns.shape[-2:]
        basis, factor = torch.linalg.qr(columns)
        square = columns[..., chosen, :]
        # eigh fails for NaN, which the other factors propagate.
        values, vectors = torch.linalg.eigh((0.5 * (square + square.mT)).nan_to_num(0.0, 0.0, 0.0))
        # The entries of I - J have an absolute rounding error of epsilon.
        rounding = count * epsilon * values.abs().amax(dim=-1, keepdim=True).clamp_min(1)
        inverse = torch.where(values.abs() > rounding, 1 / values, 0)
        half = factor @ vectors
        core = (half * inverse[..., None, :]) @ half.mT  # A_k in the basis
        core = core + self.damping * torch.eye(count, dtype=core.dtype, device=core.device)
        projected = (basis.mT @ right[..., None]).squeeze(-1)
        inside = solve_by_qr(core, projected)
        solution: Tensor = (basis @ inside[..., None]).squeeze(-1)
        if count < size:  # otherwise only rounding error is outside the span
            outside = right - (basis @ projected[..., None]).squeeze(-1)
            solution = solution + outside / self.damping
        return solution


def _columns(operator: JacobianOperator, like: Tensor, chosen: list[int]) -> Tensor:
    """Columns of I - J^T, ``[*batch, size, len(chosen)]``."""
    found = []
    for index in chosen:
        unit = torch.zeros_like(like)
        unit[..., index] = 1
        found.append(unit - operator.flat_vjp(unit))
    return torch.stack(found, dim=-1)


def _report_asymmetry(columns: Tensor, chosen: list[int], flat: Tensor, image: Tensor, epsilon: float) -> None:
    """Reports samples for which (I - J) z and (I - J^T) z differ in the entries where both are known."""
    difference = (columns.mT @ flat[..., None]).squeeze(-1) - image[..., chosen]
    size = 1 + vector_norm(columns, dim=(-2, -1))
    allowed = ROUNDING * epsilon * size * vector_norm(flat, dim=-1)
    asymmetric = vector_norm(difference, dim=-1) > allowed
    count, samples = count_of(asymmetric)
    if count:
        report(
            Failure.NOT_POSITIVE_DEFINITE,
            f"Nystrom: J is not symmetric in {count} of {samples} samples, so their solution is wrong",
        )
