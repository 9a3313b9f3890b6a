"""What the paper found, and whether the runs agree."""

import statistics
from dataclasses import dataclass

from scipy.stats import ttest_ind

from benchmarks.citation import label
from benchmarks.finished_runs import mean_and_spread

LEVEL = 0.05
"""Level of Welch's t-test at which two estimators differ."""


@dataclass(frozen=True)
class Finding:
    """A finding of the paper beside what was measured.

    Attributes:
        claim: The finding.
        verdict: ``"agrees"``, ``"disagrees"`` or ``"cannot be told"``.
        figure: What was measured.
    """

    claim: str
    verdict: str
    figure: str


def differ(values: list[float], others: list[float]) -> bool:
    """Whether the means of two estimators' seeds differ by Welch's t-test.

    Args:
        values: A value for each seed.
        others: Those of the other estimator.
    """
    if len(values) < 2 or len(others) < 2:
        return False
    if statistics.stdev(values) == statistics.stdev(others) == 0:
        return statistics.mean(values) != statistics.mean(others)
    return bool(ttest_ind(values, others, equal_var=False).pvalue < LEVEL)


def less(claim: str, pair: dict[str, list[float]], digits: int = 4) -> Finding:
    """The finding that the first of two estimators has the smaller figure.

    Args:
        claim: The finding.
        pair: Of two estimators, a value for each seed.
        digits: Digits of the figures.
    """
    (small, small_values), (large, large_values) = pair.items()
    if not differ(small_values, large_values):
        verdict = "cannot be told"
    else:
        verdict = "agrees" if statistics.mean(small_values) < statistics.mean(large_values) else "disagrees"
    figures = [
        f"{label(name)} {mean_and_spread(values, digits)}"
        for name, values in ((small, small_values), (large, large_values))
    ]
    return Finding(claim, verdict, f"{', '.join(figures)}; {len(small_values)} seeds")


def best_of_all(
    claim: str,
    name: str,
    values: list[float],
    rivals: dict[str, list[float]],
    larger: bool = False,
    digits: int = 2,
) -> Finding:
    """The finding that no other estimator does significantly better than one.

    Args:
        claim: The finding.
        name: The estimator.
        values: Its value for each seed.
        rivals: Those of the others.
        larger: Whether the larger value is the better one.
        digits: Digits of the figures.
    """
    sign = 1 if larger else -1
    better = [
        rival
        for rival, others in rivals.items()
        if differ(values, others) and sign * statistics.mean(others) > sign * statistics.mean(values)
    ]
    best = max(rivals, key=lambda rival: sign * statistics.mean(rivals[rival]))
    figure = f"{label(name)} {mean_and_spread(values, digits)}, the best other one {label(best)} "
    figure += f"{mean_and_spread(rivals[best], digits)}; {len(values)} seeds"
    if better:
        figure += f"; better: {', '.join(map(label, better))}"
    verdict = "disagrees" if better else "agrees" if len(values) > 1 else "cannot be told"
    return Finding(claim, verdict, figure)


def table(findings: list[Finding]) -> str:
    """Lays findings out as Markdown."""
    lines = ["| the paper's finding | here | figures |", "|---|---|---|"]
    lines += [f"| {finding.claim} | **{finding.verdict}** | {finding.figure} |" for finding in findings]
    return "\n".join(lines)
