"""What a truncated Neumann series leaves out."""

from collections.abc import Sequence

import torch
from torch import Tensor

from rbp_lightning.pytree import Vector, change_and_size, divide, norm, norms_of

ROUNDING = 8
"""A last term of at most so many epsilon is rounding, of whose decay nothing can be said."""


def truncation_error(
    ending: Sequence[Vector],
    gradient: Vector,
    steps: int,
    batch_dims: int,
    epsilon: float,
    total: Vector | None = None,
) -> tuple[Tensor, Tensor]:
    """Estimates the relative error of a truncated Neumann series from its last terms.

    What follows them is taken for a geometric series with one factor, real or complex, as it is once the slowest mode
    is all that is left: its modulus follows from terms two steps apart, its distance from 1 from the last two. Where
    many modes decay alike, none is left alone, and the next term's share of g is nearer the truth: the larger of the
    two is taken. A mode that is slower still, and of which the last terms show nothing yet, is not seen;
    ``AdaptiveNeumann`` and ``EquilibriumMonitor`` do not depend on that.

    Args:
        ending: Leaves of the last three terms, the newest last; fewer of a shorter series.
        gradient: Leaves of g, the first term.
        steps: Number of terms less one.
        batch_dims: The number of leading dimensions that index independent samples.
        epsilon: Relative precision of the terms.
        total: Leaves of the sum; ``None`` takes its norm for the larger of that of g and that of the slowest mode.

    Returns:
        The last term's norm over that of g, and the estimated share of the solution that is left out, 0 to 1, per
        sample; NaN where a term is. Of a series of one term nothing is known, and it is 1.

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
