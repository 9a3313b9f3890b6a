"""Recurrent back-propagation by a Neumann series with an error bound."""

from typing import Literal

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.adaptive_neumann_series import AdaptiveNeumannSeries
from rbp_lightning.solvers import FixedPointSolver


class AdaptiveNeumann(Implicit):
    """Recurrent back-propagation by a Neumann series with as many terms as are needed for a relative error of ``tol``.

    The bound is on the error of the adjoint z; the gradient of a parameter w is z times dF/dw. See
    ``AdaptiveNeumannSeries`` for the bound and its assumptions.

    Args:
        tol: Bound on the relative error of the adjoint of each sample, above 0.
        max_steps: Maximum number of terms after the first, and of steps of the Krylov fallback, at least 1.
        contraction_factor: A known bound on ||J||, such as 1 - alpha for personalised PageRank, in (0, 1); ``None``
            estimates one.
        norm_steps: Maximum number of steps to estimate the bound, at least 1, each of one product with J and one with
            J^T.
        fallback: For samples without a contraction factor below 1: ``"krylov"`` solves by GMRES, and by conjugate
            gradients if GMRES stagnates, to a residual of ``tol``, and warns that the error is not bounded;
            ``"policy"`` reports the failure to the policy's ``adjoint`` and uses z = g, the gradient of one step.
        check_every: Number of terms between two checks of the error bound.
        solver: Forward solver for the fixed point; ``None`` is ``Auto()``.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> fixed_point = AdaptiveNeumann(tol=1e-3)(lambda h: weight * h + 1, torch.zeros(()))
        >>> fixed_point.state.backward()
        >>> bool(fixed_point.adjoint.error_bound <= 1e-3), weight.grad  # of 4
        (True, tensor(3.9980))
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
        series = AdaptiveNeumannSeries(tol, max_steps, contraction_factor, norm_steps, fallback, check_every)
        super().__init__(series, solver)
        self.tol, self.max_steps, self.contraction_factor = tol, max_steps, contraction_factor
        self.norm_steps, self.fallback, self.check_every = norm_steps, fallback, check_every
