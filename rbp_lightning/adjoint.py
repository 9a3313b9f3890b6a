"""How an adjoint equation was solved."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rbp_lightning.pytree import Vector, approximate_norms, minus, share


@dataclass(frozen=True)
class AdjointReport:
    """Outcome of solving (I - J^T) z = g in a backward pass.

    Attributes:
        steps: Steps taken.
        residual: ||g - (I - J^T) z|| / ||g|| for each sample; of a truncated series, its last term's share, which
            bounds the residual where the update is a contraction.
        tol: What a sample's bound, or else its estimate, or else its residual, was meant to reach.
        error_bound: Bound on ||z - z*|| / ||z*|| for each sample, NaN for samples without; ``None`` from estimators
            that give none.
        error_estimate: Estimate of the same by ``truncation_error``; ``None`` where there is no truncated series.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> estimator = NeumannRBP(steps=4)
        >>> estimator(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> estimator.adjoint.residual, estimator.adjoint.error_estimate  # z is 1.9375 of 2
        (tensor(0.0625), tensor(0.0312))
    """

    steps: int
    residual: Tensor
    tol: float
    error_bound: Tensor | None = None
    error_estimate: Tensor | None = None

    @property
    def worst(self) -> float:
        """The largest of the samples' figures, NaN if there is one."""
        if self.error_bound is not None:
            figures = torch.where(self.error_bound.isnan(), self.residual, self.error_bound)
        else:
            figures = self.residual if self.error_estimate is None else self.error_estimate
        return float(figures.max())

    @property
    def converged(self) -> bool:
        """Whether every sample's figure is within the tolerance."""
        return self.worst <= self.tol  # false for NaN as well


def truncation_error(
    ending: Sequence[Vector], steps: int, batch_dims: int, total: Vector | None = None
) -> tuple[Tensor, Tensor]:
    """Estimates the relative error of a Neumann series from its last terms, the first being of norm 1 or 0.

    What follows them is taken for a geometric series with one factor, real or complex, as it is once the slowest mode
    is all that is left: its modulus is had from terms two steps apart, its distance from 1 from the last two.
    Where many modes decay alike, none is left alone, and the next term's share of the first is nearer the truth: the
    larger of the two is taken. A mode that is slower still, and of which the last terms show nothing yet, is not seen;
    ``AdaptiveNeumann`` and ``EquilibriumMonitor`` do not depend on that.

    Args:
        ending: Leaves of the last three terms, the newest last; fewer of a shorter series.
        steps: Number of terms less one.
        batch_dims: The number of leading dimensions that index independent samples.
        total: Leaves of the sum; ``None`` takes its norm for the larger of 1 and that of the slowest mode.

    Returns:
        The last term's norm, and the share of what is left out in the whole, 0 to 1, for each sample; NaN where there
        is one. Of a series of one term nothing is known, and it is 1.

    Example:
        >>> terms = [[torch.tensor([0.5**k])] for k in range(4)]
        >>> truncation_error(terms[-3:], steps=3, batch_dims=0)
        (tensor(0.1250), tensor(0.0625))
    """
    if len(ending) == 1:
        (last,), _ = approximate_norms(ending, batch_dims)
        return share(last, last), share(last, last)
    (change,), _ = approximate_norms([minus(ending[-1], ending[-2])], batch_dims)
    norms, _ = approximate_norms(ending if total is None else [*ending, total], batch_dims)
    before, last = norms[len(ending) - 2 : len(ending)]
    factor = last / before if len(ending) == 2 else (last / norms[0]).sqrt()
    distance = change / before  # of the factor from 1
    following = last * factor
    if total is None:
        slowest = (last / factor**steps).clamp_max(1) * (1 - factor ** (steps + 1))
        whole = torch.maximum(slowest, distance)
    else:
        whole = norms[-1] * distance
    estimate = torch.maximum(following / (whole + following), following)
    estimate = torch.where(factor >= 1, 1.0, estimate.clamp_max(1))
    return last, torch.where(last <= torch.finfo(last.dtype).eps ** 2, 0.0, estimate)
