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
        error_bound: Bound on ||z - z*|| / ||z*|| for each sample, NaN for samples without; ``None`` from estimators
            that give none.
        tol: What a sample's bound, or its residual where it has none, was meant to reach.

    Example:
        >>> weight = torch.tensor(0.5, requires_grad=True)
        >>> estimator = NeumannRBP(steps=4)
        >>> estimator(lambda h: weight * h + 1, torch.zeros(())).state.backward()
        >>> estimator.adjoint.residual
        tensor(0.0625)
    """

    steps: int
    residual: Tensor
    error_bound: Tensor | None
    tol: float

    @property
    def worst(self) -> float:
        """The largest of the samples' figures, NaN if there is one."""
        bound = self.error_bound
        return float((self.residual if bound is None else torch.where(bound.isnan(), self.residual, bound)).max())

    @property
    def converged(self) -> bool:
        """Whether every sample's figure is within the tolerance."""
        return self.worst <= self.tol  # false for NaN as well
