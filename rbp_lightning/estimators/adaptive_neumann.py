"""A Neumann series that stops when its error is known to be small."""

from typing import Literal

import torch
from torch import Tensor

from rbp_lightning.adjoint import AdjointReport
from rbp_lightning.conjugate_gradient import conjugate_gradient
from rbp_lightning.errors import check_choice, check_count, check_number
from rbp_lightning.estimators.implicit import ImplicitEstimator
from rbp_lightning.failures import Failure
from rbp_lightning.flat_jacobian import FlatJacobian
from rbp_lightning.linalg import Linearization
from rbp_lightning.pytree import Vector, norm, plus, scaled, share
from rbp_lightning.solvers import FixedPointSolver
from rbp_lightning.spectrum import norm_bounds

ROUNDING = 4
"""Rounding error of a product that is reckoned with, in units of the precision."""


class AdaptiveNeumann(ImplicitEstimator):
    """Recurrent back-propagation by a Neumann series of as many terms as a relative error asks for.

    With a contraction factor L >= ||J|| below 1, what is left out after the term t_K = (J^T)^K g is at most
    d = ||t_K|| L / (1 - L), plus rounding. The relative error of the sum z_K is then at most d / (||z_K|| - d), and
    the series stops when that is within ``tol`` in every sample. It is a bound on the gradient with respect to what is
    added to the state; that of a parameter is the same vector times dF/dw. Rounding is reckoned as an error of four
    units in the last place of each product, in the norm, which is a model and no proof.

    The contraction factor is bounded at each backward pass, for each sample, from products with J and J^T
    (``norm_bounds``), unless it is given. Where it is not below 1 no error can be promised, which is reported; so is a
    tolerance that the precision does not allow, and a factor that a term disproves.

    Args:
        tol: Bound on the relative error of the adjoint of each sample, above 0.
        max_steps: Most terms beyond the first, and most conjugate-gradient steps, at least 1.
        contraction_factor: A bound on ||J|| that is known to hold, such as 1 - alpha of personalised PageRank, in
            (0, 1); ``None`` finds one.
        norm_steps: Most steps that finding one takes, at least 1, of one product with J and one with J^T each.
        fallback: For samples without a contraction factor below 1: ``"krylov"`` solves by conjugate gradients, to a
            residual of ``tol``, with a warning that the error is not bounded; ``"policy"`` leaves them to the
            policy's ``adjoint``, and their gradient at g, that of one step.
        check_every: Terms between two looks at the bound, each of which waits for the device.
        solver: Forward solver that finds the fixed point; ``None`` is ``Picard()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> estimator = AdaptiveNeumann(tol=1e-3)
        >>> estimator(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> estimator.adjoint.steps, bool(estimator.adjoint.error_bound <= 1e-3), weight.grad  # of 4
        (10, True, tensor(3.9980))
    """

    def __init__(
        self,
        tol: float = 1e-4,
        max_steps: int = 1000,
        contraction_factor: float | None = None,
        norm_steps: int = 30,
        fallback: Literal["krylov", "policy"] = "krylov",
        check_every: int = 10,
        solver: FixedPointSolver | None = None,
    ) -> None:
        super().__init__(solver)
        self.tol = check_number(self, "tol", tol, 0.0, low_allowed=False)
        self.max_steps = check_count(self, "max_steps", max_steps, 1)
        if contraction_factor is not None:
            check_number(self, "contraction_factor", contraction_factor, 0.0, 0.999999, low_allowed=False)
        self.contraction_factor = contraction_factor
        self.norm_steps = check_count(self, "norm_steps", norm_steps, 1)
        self.fallback = check_choice(self, "fallback", fallback, ("krylov", "policy"))
        self.check_every = check_count(self, "check_every", check_every, 1)

    def solve_adjoint(self, linearization: Linearization, gradient: Vector, start: Vector | None) -> Vector:
        """Sums the series of the samples that have a contraction factor, and solves for the others."""
        factor = self._contraction_factor(linearization, gradient)
        bounded = factor < 1
        adjoint, steps, residual, bound = self._series(linearization, scaled(bounded.to(factor), gradient), factor)
        if bool(bounded.all()):
            self.report_adjoint(steps, residual, self.tol, bound)
            return adjoint
        others = scaled((~bounded).to(factor), gradient)
        what = (
            f"The norm of J is not known to be below 1 ({int((~bounded).sum())} of {bounded.numel()} samples), so the "
            "error of the Neumann series is not bounded"
        )
        if self.fallback == "krylov":
            self.policy.tell(Failure.NO_CONTRACTION, f"AdaptiveNeumann: {what}, and conjugate gradients take its place")
            solution = conjugate_gradient(linearization, others, self.max_steps, self.tol, self.check_every)
            residual = torch.where(bounded, residual, solution.residual)
            bound = torch.where(bounded, bound, float("nan"))
            self.report_adjoint(max(steps, solution.steps), residual, self.tol, bound)
            return plus(adjoint, solution.vector)
        residual = torch.where(bounded, residual, linearization.adjoint_residual(others, others))
        bound = torch.where(bounded, bound, float("inf"))
        self.report(Failure.NO_CONTRACTION, what)
        self.adjoint = AdjointReport(steps, residual, self.tol, bound)
        return plus(adjoint, others)

    def _contraction_factor(self, linearization: Linearization, gradient: Vector) -> Tensor:
        if self.contraction_factor is not None:
            return torch.full_like(norm(gradient, linearization.batch_dims), self.contraction_factor)
        bounds = norm_bounds(FlatJacobian(linearization, list(gradient)), self.norm_steps, enough=True)
        return (bounds.upper * (1 + ROUNDING * linearization.epsilon)).nan_to_num(nan=float("inf"), posinf=float("inf"))

    def _series(
        self, linearization: Linearization, gradient: Vector, factor: Tensor
    ) -> tuple[Vector, int, Tensor, Tensor]:
        """The sum, its number of terms less one, the last one's share and the bound on the sum's relative error."""
        term: Vector = gradient
        total: Vector = gradient
        batch_dims = linearization.batch_dims
        epsilon = ROUNDING * linearization.epsilon
        size = last = norm(gradient, batch_dims)
        norms = torch.zeros_like(size)  # of all terms, together, or more: they shrink
        for step in range(1, self.max_steps + 1):
            previous, term = term, linearization.vjp(term)
            total = plus(total, term)
            if step % self.check_every == 0 or step == self.max_steps:
                norms = norms + last * (step % self.check_every or self.check_every)
                before, last = norm(previous, batch_dims), norm(term, batch_dims)
                left_out, rounding = last * factor / (1 - factor), epsilon * norms / (1 - factor)
                known = norm(total, batch_dims) - left_out - rounding
                bound = torch.where(known > 0, (left_out + rounding) / known, float("inf"))
                bound = torch.where(size == 0, 0, torch.where(size.isfinite(), bound, float("nan")))
                disproved = last > before * factor * (1 + epsilon)
                bound = torch.where(disproved, float("inf"), bound)
                if bool(((bound <= self.tol) | bound.isnan() | disproved | (left_out <= rounding)).all()):
                    break
        return total, step, share(last, size), bound
