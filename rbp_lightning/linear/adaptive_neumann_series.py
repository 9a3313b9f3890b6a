"""A Neumann series that stops when its error is known to be small."""

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
"""Rounding error of a product that is allowed for, in units of the precision."""

GMRES_STEPS = 200
"""Steps after which GMRES is taken to stagnate."""


class AdaptiveNeumannSeries(LinearSolver):
    """A Neumann series of as many terms as a relative error asks for.

    With a contraction factor L >= ||J|| below 1, what is left out after the term t_K = (J^T)^K g is at most
    d = ||t_K|| L / (1 - L), plus rounding. The relative error of the sum z_K is then at most d / (||z_K|| - d), and
    the series stops when that is within ``tol`` in every sample. Rounding is modelled as an error of four units in the
    last place of each product, in the norm, which is a model and no proof.

    The contraction factor is bounded in each solve, per sample, from products with J and J^T (``norm_bounds``), unless
    it is given. Where it is not below 1 no error can be promised, which is reported; so is a tolerance that the
    precision does not allow, and a factor that a term disproves.

    Args:
        tol: Bound on the relative error of each sample, above 0.
        max_steps: Most terms beyond the first, and most steps of a Krylov method, at least 1.
        contraction_factor: A bound on ||J|| that is known to hold, such as 1 - alpha of personalised PageRank, in
            (0, 1); ``None`` finds one.
        norm_steps: Most steps that finding one takes, at least 1, of one product with J and one with J^T each.
        fallback: For samples without a contraction factor below 1: ``"krylov"`` solves by GMRES, and where that
            stagnates by conjugate gradients from there, to a residual of ``tol``, with a warning that the error is not
            bounded; ``"policy"`` leaves them to the policy's ``adjoint``, and their z at g.
        check_every: Terms between two checks of the bound.

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
        """Sums the series of the samples that have a contraction factor, and solves for the others."""
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
                notify(Failure.NO_CONTRACTION, f"{what}, and GMRES takes its place")
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
        """GMRES, and where that stagnates conjugate gradients from what it has."""
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
        # A start of its own for each g: the probability is one over the starts. It depends on nothing else, so that a
        # resumed run draws the same; and processes that share one state do, should they have rounded g differently.
        seed = int.from_bytes(hashlib.sha256(size.double().cpu().numpy().tobytes()).digest()[:4], "big")
        seed = largest_of(seed)
        bounds = norm_bounds(operator, self.norm_steps, seed=seed, stop_early=True)
        return (bounds.upper * (1 + ROUNDING * operator.epsilon)).nan_to_num(nan=float("inf"), posinf=float("inf"))

    def _series(
        self, operator: JacobianOperator, gradient: Vector, factor: Tensor
    ) -> tuple[Vector, int, Tensor, Tensor]:
        """The sum, its number of terms less one, the last one's share of g and the bound on the sum's error."""
        term: Vector = gradient
        total: Vector = gradient
        batch_dims, epsilon = operator.batch_dims, ROUNDING * operator.epsilon
        schedule = CheckSchedule(self.check_every, self.tol)
        size = last = norm(gradient, batch_dims)
        norms = torch.zeros_like(size)  # the terms' sum, or more: they shrink
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
