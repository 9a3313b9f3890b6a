"""A Neumann series that stops when an error bound is below a tolerance."""

import hashlib
from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from rbp_lightning.agreement import count_of, everywhere, largest_of
from rbp_lightning.check_schedule import CheckSchedule
from rbp_lightning.errors import check_choice, check_count, check_number
from rbp_lightning.failures import Failure
from rbp_lightning.linear.base import LinearSolution, LinearSolver
from rbp_lightning.linear.gmres import GMRES
from rbp_lightning.linear.jacobian import JacobianOperator
from rbp_lightning.linear.normal_cg import NormalCG
from rbp_lightning.linear.spectrum import norm_bounds
from rbp_lightning.pytree import Vector, add, divide, norm, scale, where
from rbp_lightning.reporting import notify, report

ROUNDING = 4
"""Assumed rounding error of a product, in units of the precision."""

GMRES_STEPS = 200
"""Number of steps after which GMRES is assumed to stagnate."""


class AdaptiveNeumannSeries(LinearSolver):
    """A Neumann series with as many terms as are needed for a relative error of ``tol``.

    With a contraction factor L >= ||J|| below 1, the truncation error after the term t_K = (J^T)^K g is at most
    d = ||t_K|| L / (1 - L), plus rounding. The relative error of the sum z_K is then at most d / (||z_K|| - d), and
    the series stops when that is at most ``tol`` for every sample. Rounding is modelled, not proved, as a relative
    error of four units of the precision in the norm of each product.

    Unless the contraction factor is given, it is bounded in each solve, per sample, from products with J and J^T
    (``norm_bounds``). If it is not below 1, the error is not bounded, which is reported; so are a tolerance that the
    precision does not allow, and a given factor that a term of the series disproves.

    Args:
        tol: Bound on the relative error of each sample, above 0.
        max_steps: Maximum number of terms after the first, and of steps of the Krylov fallback, at least 1.
        contraction_factor: A known bound on ||J||, such as 1 - alpha for personalised PageRank, in (0, 1); ``None``
            estimates one.
        norm_steps: Maximum number of steps to estimate the bound, at least 1, each of one product with J and one with
            J^T.
        fallback: For samples without a contraction factor below 1: ``"krylov"`` solves by GMRES, and by conjugate
            gradients if GMRES stagnates, to a residual of ``tol``, and warns that the error is not bounded;
            ``"policy"`` reports the failure to the policy's ``adjoint`` and uses z = g.
        check_every: Number of terms between two checks of the error bound.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2), batch_dims=0)
        >>> solution = AdaptiveNeumannSeries(tol=1e-3).solve(operator, [torch.ones(2)])
        >>> solution.steps, bool(solution.error_bound <= 1e-3)
        (10, True)
    """

    def __init__(
        self,
        tol: float = 1e-4,
        max_steps: int = 1000,
        contraction_factor: float | None = None,
        norm_steps: int = 30,
        fallback: Literal["krylov", "policy"] = "krylov",
        check_every: int = 10,
    ) -> None:
        self.tol = check_number(self, "tol", tol, 0.0, low_allowed=False)
        self.max_steps = check_count(self, "max_steps", max_steps, 1)
        if contraction_factor is not None:
            check_number(self, "contraction_factor", contraction_factor, 0.0, 0.999999, low_allowed=False)
        self.contraction_factor = contraction_factor
        self.norm_steps = check_count(self, "norm_steps", norm_steps, 1)
        self.fallback = check_choice(self, "fallback", fallback, ("krylov", "policy"))
        self.check_every = check_count(self, "check_every", check_every, 1)

    def solve(self, operator: JacobianOperator, gradient: Vector, start: Vector | None = None) -> LinearSolution:
        """Sums the series for samples with a contraction factor below 1, and uses the fallback for the others."""
        before = operator.products
        factor = self._factor(operator, gradient)
        bounded = factor < 1
        adjoint, steps, residual, bound = self._series(operator, scale(bounded.to(factor), gradient), factor)
        if not everywhere(bounded.all()):
            others = scale((~bounded).to(factor), gradient)
            count, samples = count_of(~bounded)
            what = (
                f"AdaptiveNeumannSeries: The norm of J is not known to be below 1 ({count} of {samples} samples), so "
                "the error of the Neumann series is not bounded"
            )
            if self.fallback == "krylov":
                notify(Failure.NO_CONTRACTION, f"{what}, and GMRES is used instead")
                solution = self._krylov(operator, others)
                steps, adjoint = max(steps, solution.steps), add(adjoint, solution.vector)
                residual = torch.where(bounded, residual, solution.residual)
                bound = torch.where(bounded, bound, float("nan"))
            else:
                report(Failure.NO_CONTRACTION, what)
                adjoint = add(adjoint, others)
                residual = torch.where(bounded, residual, operator.adjoint_residual(others, others))
                bound = torch.where(bounded, bound, float("inf"))
        return LinearSolution(adjoint, steps, operator.products - before, residual, self.tol, bound)

    def _krylov(self, operator: JacobianOperator, gradient: Vector) -> LinearSolution:
        """Solves by GMRES, and by conjugate gradients from its result for samples that have not converged."""
        steps = min(self.max_steps, GMRES_STEPS)
        first = GMRES(steps, self.tol, check_every=self.check_every).solve(operator, gradient)
        if everywhere(first.converged):
            return first
        failed = ~(first.residual <= self.tol)
        mask = failed.to(first.residual)
        conjugate = NormalCG(self.max_steps, self.tol, self.check_every)
        second = conjugate.solve(operator, scale(mask, gradient), scale(mask, first.vector))
        return replace(
            second,
            vector=where(failed, second.vector, first.vector),
            residual=torch.where(failed, second.residual, first.residual),
            steps=first.steps + second.steps,
        )

    def _factor(self, operator: JacobianOperator, gradient: Vector) -> Tensor:
        size = norm(gradient, operator.batch_dims)
        if self.contraction_factor is not None:
            return torch.full_like(size, self.contraction_factor)
        # The bound holds with high probability over the random start, so each g gets its own start. The seed depends
        # only on g, so that a resumed run draws the same numbers.
        seed = int.from_bytes(hashlib.sha256(size.double().cpu().numpy().tobytes()).digest()[:4], "big")
        seed = largest_of(seed)  # the same in all processes, which may have rounded g differently
        bounds = norm_bounds(operator, self.norm_steps, seed=seed, stop_early=True)
        return (bounds.upper * (1 + ROUNDING * operator.epsilon)).nan_to_num(nan=float("inf"), posinf=float("inf"))

    def _series(
        self, operator: JacobianOperator, gradient: Vector, factor: Tensor
    ) -> tuple[Vector, int, Tensor, Tensor]:
        """Returns the sum, the number of products, ||last term|| / ||g||, and the bound on the relative error."""
        term: Vector = gradient
        total: Vector = gradient
        batch_dims, epsilon = operator.batch_dims, ROUNDING * operator.epsilon
        schedule = CheckSchedule(self.check_every, self.tol)
        size = last = norm(gradient, batch_dims)
        norms = torch.zeros_like(size)  # upper bound on the sum of the norms of the terms, which decrease
        checked = 0
        for step in range(1, self.max_steps + 1):
            previous, term = term, operator.vjp(term)
            total = add(total, term)
            check = schedule.should_check(step)
            if check or step == self.max_steps:
                norms, checked = norms + last * (step - checked), step
                before, last = norm(previous, batch_dims), norm(term, batch_dims)
                left_out, rounding = last * factor / (1 - factor), epsilon * norms / (1 - factor)
                known = norm(total, batch_dims) - left_out - rounding
                bound = torch.where(known > 0, (left_out + rounding) / known, float("inf"))
                bound = torch.where(size == 0, 0, torch.where(size.isfinite(), bound, float("nan")))
                disproved = last > before * factor * (1 + epsilon)
                bound = torch.where(disproved, float("inf"), bound)
                hopeless = bound.isnan() | disproved | (left_out <= rounding)
                if check and schedule.is_finished(step, bound.masked_fill(hopeless, 0.0)):
                    break
        return total, step, divide(last, size), bound
