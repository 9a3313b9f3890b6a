"""A Neumann series of as many terms as an error bound asks for."""

from typing import Literal

from rbp_lightning.estimators.implicit import Implicit
from rbp_lightning.linear.adaptive_neumann_series import AdaptiveNeumannSeries
from rbp_lightning.solvers import FixedPointSolver


class AdaptiveNeumann(Implicit):
    """Recurrent back-propagation by a Neumann series of as many terms as a relative error asks for.

    The bound is one on the gradient with respect to what is added to the state; that of a parameter is the same vector
    times dF/dw. ``AdaptiveNeumannSeries`` says how it is found, and what it rests on.

    Args:
        tol: Bound on the relative error of the adjoint of each sample, above 0.
        max_steps: Most terms beyond the first, and most steps of a Krylov method, at least 1.
        contraction_factor: A bound on ||J|| that is known to hold, such as 1 - alpha of personalised PageRank, in
            (0, 1); ``None`` finds one.
        norm_steps: Most steps that finding one takes, at least 1, of one product with J and one with J^T each.
        fallback: For samples without a contraction factor below 1: ``"krylov"`` solves by GMRES, and where that
            stagnates by conjugate gradients from there, to a residual of ``tol``, with a warning that the error is not
            bounded; ``"policy"`` leaves them to the policy's ``adjoint``, and their gradient at g, that of one step.
        check_every: Terms between two checks of the bound, as ``Picard``'s.
        solver: Forward solver that finds the fixed point; ``None`` is ``Auto()``.

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
