"""How an adjoint equation was solved."""

from dataclasses import dataclass

import torch
from torch import Tensor


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
    first: Tensor, previous: Tensor | None, last: Tensor, steps: int, total: Tensor | None = None
) -> Tensor:
    """Estimates the relative error of a Neumann series from the norms of its terms.

    What follows the last term is taken for a geometric series with the ratio of the last two terms, as it is once the
    slowest mode is all that is left. A mode that is slower still, and of which the last term shows nothing yet, is not
    seen; ``AdaptiveNeumann`` and ``EquilibriumMonitor`` do not depend on that.

    Args:
        first: Norm of the first term for each sample.
        previous: Norm of the last term but one; ``None`` of a series of one term, of which nothing is known.
        last: Norm of the last term.
        steps: Number of terms less one.
        total: Norm of their sum; ``None`` takes it for the larger of the first term and the slowest mode's part.

    Returns:
        The share of what is left out in the whole, 0 to 1, of the shape of ``first``; NaN where a norm is.

    Example:
        >>> truncation_error(torch.tensor(1.0), torch.tensor(0.25), torch.tensor(0.125), steps=3)
        tensor(0.0625)
    """
    if previous is None:
        return torch.where(last == 0, last, last / last)
    ratio = torch.where(last == 0, last, last / previous)
    left_out = last * ratio / (1 - ratio)
    if total is None:
        slowest = torch.minimum(last / ratio**steps, first) * (1 - ratio ** (steps + 1)) / (1 - ratio)
        total = torch.maximum(first, slowest)
    share = torch.where(last == 0, last, left_out / (total + left_out))
    return torch.where(ratio >= 1, 1.0, share)
