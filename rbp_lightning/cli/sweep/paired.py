"""Means, standard deviations and paired differences over seeds."""

import math
import statistics
from collections.abc import Sequence
from typing import NamedTuple


class Difference(NamedTuple):
    """The mean of paired differences and its confidence interval.

    Attributes:
        mean: The mean.
        low: The interval's lower end.
        high: The interval's upper end.
        pairs: The number of pairs.
    """

    mean: float
    low: float
    high: float
    pairs: int


def mean_and_spread(values: Sequence[float]) -> str:
    """Formats mean and standard deviation of the finite values, and how many are not finite.

    Args:
        values: The values.

    Example:
        >>> mean_and_spread([1.0, 2.0, 3.0]), mean_and_spread([1.0, math.nan])
        ('2 ± 1', '1 (not finite: 1)')
    """
    finite = [value for value in values if math.isfinite(value)]
    spread = f" ± {statistics.stdev(finite):.2g}" if len(finite) > 1 else ""
    lost = f" (not finite: {len(values) - len(finite)})" if len(finite) < len(values) else ""
    return f"{statistics.mean(finite):.4g}{spread}{lost}" if finite else f"-{lost}"


def paired_difference(values: dict[int, float], others: dict[int, float], level: float = 0.95) -> Difference | None:
    """Computes the mean paired difference between two groups, with Student's t interval.

    Seeds that only one group has, and values that are not finite, are left out.

    Args:
        values: The first group's values, by seed.
        others: The second group's values, by seed.
        level: The interval's confidence level.

    Returns:
        The difference ``values - others``; ``None`` with fewer than two pairs.

    Example:
        >>> one = paired_difference({0: 1.0, 1: 3.0, 2: 5.0}, {0: 1.0, 1: 2.0, 2: 3.0})
        >>> f"{one.mean} [{one.low:.3f}, {one.high:.3f}]"
        '1.0 [-1.484, 3.484]'
    """
    differences = [values[seed] - others[seed] for seed in values if seed in others]
    differences = [one for one in differences if math.isfinite(one)]
    if len(differences) < 2:
        return None
    mean = statistics.mean(differences)
    error = statistics.stdev(differences) / math.sqrt(len(differences))
    width = t_quantile((1 + level) / 2, len(differences) - 1) * error
    return Difference(mean, mean - width, mean + width, len(differences))


def t_quantile(probability: float, freedom: int) -> float:
    """Computes a quantile of Student's t distribution, by bisection of its distribution function.

    Args:
        probability: The probability, above 0.5 and below 1.
        freedom: Degrees of freedom, at least 1.

    Example:
        >>> round(t_quantile(0.975, 4), 6)
        2.776445
    """
    low, high = 0.0, math.pi / 2
    while low < (middle := (low + high) / 2) < high:
        if _central(middle, freedom) < 2 * probability - 1:
            low = middle
        else:
            high = middle
    return math.tan(low) * math.sqrt(freedom)


def _central(angle: float, freedom: int) -> float:
    """P(|t| <= tan(angle) sqrt(freedom)): Abramowitz and Stegun, equations 26.7.3 and 26.7.4."""
    squared = math.cos(angle) ** 2
    odd = freedom % 2
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for order in range(odd + 2, freedom + 1, 2):
        total += term
        term *= squared * (order - 1) / order
    series = math.sin(angle) * total
    return 2 / math.pi * (angle + series) if odd else series
