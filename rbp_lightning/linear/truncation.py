"""Estimates the error of a truncated Neumann series."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rbp_lightning.pytree import Vector, change_and_size, divide, norm, norms_of

ROUNDING = 8
"""A last term of at most this many epsilon is rounding error, whose decay means nothing."""


def truncation_error(
    ending: Sequence[Vector],
    gradient: Vector,
    steps: int,
    batch_dims: int,
    epsilon: float,
    total: Vector | None = None,
) -> tuple[Tensor, Tensor]:
    """Estimates the relative error of a truncated Neumann series from its last terms.

    The remainder is modelled as a geometric series with one factor, real or complex, which is right once only the
    slowest mode remains: the modulus of the factor follows from terms two steps apart, its distance from 1 from the
    last two terms. If many modes decay at similar rates, the norm of the next term relative to g is a better estimate;
    the larger of the two is returned. A slower mode that does not show in the last terms is missed; ``AdaptiveNeumann``
    and ``EquilibriumMonitor`` do not have this limitation.

    Args:
        ending: Leaves of the last three terms, the newest last; fewer for a shorter series.
        gradient: Leaves of g, the first term.
        steps: Number of terms less one.
        batch_dims: The number of leading dimensions that index independent samples.
        epsilon: Relative precision of the terms.
        total: Leaves of the sum; ``None`` estimates its norm as the larger of those of g and of the slowest mode.

    Returns:
        ||last term|| / ||g||, and the estimated relative truncation error, 0 to 1, per sample; NaN where a term is NaN.
        For a series of one term the error is unknown, and the estimate is 1.

    Example:
        >>> terms = [[torch.tensor([0.5**k])] for k in range(4)]
        >>> truncation_error(terms[-3:], terms[0], steps=3, batch_dims=0, epsilon=1e-7)
        (tensor(0.1250), tensor(0.0625))
    """
    first, *norms = norms_of([gradient, *ending], batch_dims)
    if len(ending) == 1:
        share = divide(first, first)
        return share, share
    before, last = norms[-2:]
    change, _ = change_and_size(ending[-2], ending[-1], batch_dims)
    factor = last / before if len(ending) == 2 else (last / norms[0]).sqrt()
    distance = change / before  # of the factor from 1
    share = divide(last, first)
    following = share * factor
    if total is None:
        slowest = (share / factor**steps).clamp_max(1) * (1 - factor ** (steps + 1))
        whole = torch.maximum(slowest, distance)
    else:
        whole = divide(norm(total, batch_dims), first) * distance
    estimate = torch.maximum(following / (whole + following), following)
    estimate = torch.where(factor >= 1, 1.0, estimate.clamp_max(1))
    return share, torch.where(share <= ROUNDING * epsilon, share, estimate)
