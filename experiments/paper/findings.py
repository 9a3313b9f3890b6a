"""The paper's findings, and whether the runs agree with them."""

import math
import re
import statistics
from collections import Counter
from dataclasses import dataclass

from scipy.stats import ttest_rel

from benchmarks.report import markdown
from experiments.runs import label, mean_and_spread

RELEVANT = 1e-3
"""Relative difference up to which two estimators count as alike."""

LEVEL = 0.05
"""Significance level of the paired t-test."""

UNSTABLE = "RBP can be unstable: it ends worse than NeumannRBP"
EFFECTIVE = "NeumannRBP is effective: it ends better than some other estimators, and worse than none"
TIME = "NeumannRBP has TBPTT's time complexity in the truncation steps"
MEMORY = "NeumannRBP's memory is constant in the truncation steps"
TAPE = "TBPTT's memory grows linearly with the truncation steps"


@dataclass(frozen=True)
class Finding:
    """A finding of the paper, compared with a measurement.

    Attributes:
        claim: The finding.
        where: The quantity that was compared.
        verdict: ``"agrees"``, ``"disagrees"`` or ``"inconclusive"``.
        figure: The measured values.
        version: The version, or versions, of this project in the runs.
    """

    claim: str
    where: str
    verdict: str
    figure: str
    version: str = ""

    @property
    def topic(self) -> str:
        """The quantity, without the truncation steps."""
        return re.sub(r", \d+ steps$", "", self.where)


def differ(values: list[float], others: list[float]) -> bool:
    """Whether two estimators differ: by more than ``RELEVANT`` and a paired t-test, or only one is not finite.

    Args:
        values: A value for each seed.
        others: Those of the other estimator, for the same seeds, which also draw weights and splits.
    """
    if len(values) < 2:
        return False
    finite = [all(map(math.isfinite, one)) for one in (values, others)]
    if not all(finite):
        return any(finite)
    differences = [one - other for one, other in zip(values, others, strict=True)]
    mean = abs(statistics.mean(differences))
    if mean <= RELEVANT * abs(statistics.mean(values)):
        return False
    if statistics.stdev(differences) <= 1e-9 * mean:  # the same for all seeds, up to rounding
        return True
    return bool(ttest_rel(values, others).pvalue < LEVEL)


def _mean(values: list[float]) -> float:
    """The mean of losses; infinite if a loss is not finite."""
    return statistics.mean(values) if all(map(math.isfinite, values)) else math.inf


def less(claim: str, where: str, pair: dict[str, list[float]], digits: int = 4) -> Finding:
    """Compares two estimators; the finding is that the first one has the smaller value.

    Args:
        claim: The finding.
        where: The quantity that was compared.
        pair: For both estimators, a value for each seed.
        digits: Digits of the values.
    """
    (small, small_values), (large, large_values) = pair.items()
    if not differ(small_values, large_values):
        verdict = "inconclusive"
    else:
        verdict = "agrees" if _mean(small_values) < _mean(large_values) else "disagrees"
    figures = [
        f"{label(name)} {mean_and_spread(values, digits)}"
        for name, values in ((small, small_values), (large, large_values))
    ]
    return Finding(claim, where, verdict, f"{', '.join(figures)}; {len(small_values)} seeds")


def rivals_at(steps: int, values: dict[str, list[float]]) -> dict[str, list[float]]:
    """The estimators that ``NeumannRBP`` is compared with.

    Args:
        steps: Truncation steps; ``BPTT`` has none.
        values: For each estimator, as ``NAME`` or ``NAME:STEPS``, a value for each seed.
    """
    return {name: values[name] for name in ("BPTT", *(f"{one}:{steps}" for one in ("TBPTT", "RBP", "CGRBP")))}


def best_of_all(
    claim: str,
    where: str,
    name: str,
    values: list[float],
    rivals: dict[str, list[float]],
    larger: bool = False,
    digits: int = 2,
) -> Finding:
    """Compares an estimator with others; the finding is that it is better than some, and worse than none.

    Args:
        claim: The finding.
        where: The quantity that was compared.
        name: The estimator.
        values: Its value for each seed.
        rivals: The values of the others.
        larger: Whether larger values are better.
        digits: Digits of the values.
    """
    sign = -1 if larger else 1
    told = [rival for rival, others in rivals.items() if differ(values, others)]
    mean = sign * _mean(values)
    better = [rival for rival in told if sign * _mean(rivals[rival]) < mean]
    best = min(rivals, key=lambda rival: sign * _mean(rivals[rival]))
    figure = f"{label(name)} {mean_and_spread(values, digits)}, the best other one {label(best)} "
    figure += f"{mean_and_spread(rivals[best], digits)}; {len(values)} seeds; "
    figure += f"better: {', '.join(map(label, better)) or 'none'}; "
    figure += f"worse: {', '.join(label(rival) for rival in told if rival not in better) or 'none'}"
    verdict = "disagrees" if better else "agrees" if told else "inconclusive"
    return Finding(claim, where, verdict, figure)


def summary(findings: list[Finding]) -> str:
    """Summarises the findings on each claim in a sentence, as Markdown."""
    rows = []
    for claim in dict.fromkeys(finding.claim for finding in findings):
        found = [finding for finding in findings if finding.claim == claim]
        rows.append([claim, f"{found[0].verdict}: {found[0].figure}" if len(found) == 1 else _sentence(found)])
    return markdown(["the paper's claim", "result here"], rows)


def _sentence(findings: list[Finding]) -> str:
    every = Counter(finding.topic for finding in findings)
    parts = []
    for verdict in ("agrees", "disagrees", "inconclusive"):
        topics = Counter(finding.topic for finding in findings if finding.verdict == verdict)
        if topics:
            told = "; ".join(f"{topic}, {count} of {every[topic]}" for topic, count in topics.items())
            parts.append(f"{verdict} in {topics.total()} of {len(findings)} comparisons ({told})")
    return "; ".join(parts)


def table(findings: list[Finding]) -> str:
    """Formats all comparisons as Markdown."""
    rows = [[one.claim, one.where, f"**{one.verdict}**", one.figure, one.version] for one in findings]
    return markdown(["the paper's claim", "compared", "verdict", "values", "version"], rows)
