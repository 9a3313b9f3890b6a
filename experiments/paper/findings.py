"""The paper's findings, and whether the runs agree with them."""

import math
import statistics
from collections import Counter
from dataclasses import dataclass

from scipy.stats import ttest_rel

from benchmarks.report import markdown
from experiments.runs import Row, label, mean_and_spread

RELEVANT = 1e-3
"""Relative difference up to which two estimators count as alike."""

LEVEL = 0.05
"""Significance level of the paired t-test."""

UNSTABLE = "RBP can be unstable: it ends worse than NeumannRBP"
EFFECTIVE = "NeumannRBP is effective: it ends better than some other estimators, and worse than none"
TIME = "NeumannRBP has TBPTT's time complexity in the truncation steps"
MEMORY = "NeumannRBP's memory is constant in the truncation steps"
TAPE = "TBPTT's memory grows linearly with the truncation steps"

TRAININGS = "Trainings"
"""The kind of comparison that trains networks."""

ALIKE = "no significant difference"
RESULTS = {"agrees": "worse", "disagrees": "better", "inconclusive": ALIKE}
"""What is found of the estimator that should end worse."""


@dataclass(frozen=True)
class Errors:
    """Relative errors of the adjoints of two estimators.

    Attributes:
        neumann: The error of ``NeumannRBP``.
        rbp: The error of ``RBP``.
        start: Where ``RBP`` starts.
    """

    neumann: float
    rbp: float
    start: str


@dataclass(frozen=True)
class Finding:
    """A finding of the paper, compared with a measurement.

    Attributes:
        claim: The finding.
        where: The quantity that was compared.
        verdict: ``"agrees"``, ``"disagrees"`` or ``"inconclusive"``.
        figure: The measured values.
        kind: Where comparisons are counted together, as the beginning of a sentence; empty if there is only one.
        result: The rest of the sentence.
        errors: The errors, if the adjoints themselves were compared.
        version: The version, or versions, of this project in the runs.
    """

    claim: str
    where: str
    verdict: str
    figure: str
    kind: str = ""
    result: str = ""
    errors: Errors | None = None
    version: str = ""


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


def less(claim: str, where: str, pair: dict[str, list[float]], digits: int = 4, kind: str = TRAININGS) -> Finding:
    """Compares two estimators; the finding is that the first one has the smaller value.

    Args:
        claim: The finding.
        where: The quantity that was compared.
        pair: For both estimators, a value for each seed.
        digits: Digits of the values.
        kind: Where comparisons are counted together.
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
    figure = f"{', '.join(figures)}; {len(small_values)} seeds"
    return Finding(claim, where, verdict, figure, kind, RESULTS[verdict])


def rivals_at(steps: int, values: dict[str, list[float]]) -> dict[str, list[float]]:
    """The estimators that ``NeumannRBP`` is compared with.

    Args:
        steps: Truncation steps; ``BPTT`` has none.
        values: For each estimator that was run, as ``NAME`` or ``NAME:STEPS``, a value for each seed.
    """
    names = ("BPTT", *(f"{one}:{steps}" for one in ("TBPTT", "RBP", "CGRBP")))
    return {name: values[name] for name in names if name in values}


def best_of_all(
    claim: str,
    where: str,
    kind: str,
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
        kind: Where comparisons are counted together.
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
    worse = [rival for rival in told if rival not in better]
    best = min(rivals, key=lambda rival: sign * _mean(rivals[rival]))
    figure = f"{label(name)} {mean_and_spread(values, digits)}, the best other estimator {label(best)} "
    figure += f"{mean_and_spread(rivals[best], digits)}; {len(values)} seeds; "
    figure += f"better: {', '.join(map(label, better)) or 'none'}; worse: {', '.join(map(label, worse)) or 'none'}"
    verdict = "disagrees" if better else "agrees" if told else "inconclusive"
    sides = [f"worse than {_names(better)}", f"better than {_names(worse)}"]
    result = ", ".join(sides if better else reversed(sides)) if told else ALIKE
    return Finding(claim, where, verdict, figure, kind, result)


def _names(estimators: list[str]) -> str:
    """The names of estimators, without their steps, in a sentence."""
    return " and ".join(dict.fromkeys(name.partition(":")[0] for name in estimators)) or "none"


def claims(findings: list[Finding]) -> list[Row]:
    """The table of claims: whether each one holds, and what was found, in a sentence for each kind of comparison."""
    rows = []
    for claim in dict.fromkeys(finding.claim for finding in findings):
        found = [finding for finding in findings if finding.claim == claim]
        found.sort(key=lambda finding: finding.errors is None)  # errors of adjoints come first
        kinds = dict.fromkeys(finding.kind for finding in found)
        told = [_sentence([finding for finding in found if finding.kind == kind]) for kind in kinds]
        verdict = _verdict({finding.verdict for finding in found})
        rows.append({"the paper's claim": claim, "does it hold here?": verdict, "what was found": " ".join(told)})
    return rows


def _verdict(verdicts: set[str]) -> str:
    if "agrees" in verdicts:
        return "yes" if len(verdicts) == 1 else "in part"
    return "no" if "disagrees" in verdicts else "undecided"


def _sentence(findings: list[Finding]) -> str:
    """Says what was found in the comparisons of a kind."""
    first, *others = findings
    if not first.kind:
        return f"{first.figure[0].upper()}{first.figure[1:]}."
    if not others:
        return f"{first.kind}: {first.result}."
    (result, count), *rest = Counter(finding.result for finding in findings).most_common()
    counts = [
        f"{result} in {count} of {len(findings)} comparisons",
        *(f"{result} in {count}" for result, count in rest if result != ALIKE),
    ]
    errors = [finding.errors for finding in findings if finding.errors is not None]
    return f"{first.kind}: {'; '.join(counts)}{_compared(errors) if errors else ''}."


def _compared(errors: list[Errors]) -> str:
    """Says how large the error of ``RBP`` is, as a multiple of that of ``NeumannRBP``."""
    factors = {}
    for start in dict.fromkeys(error.start for error in errors):
        ratios = [error.rbp / error.neumann for error in errors if error.start == start]
        factors[start] = f"{_factor(min(ratios))} to {_factor(max(ratios))} times"
    own = [error.neumann for error in errors]
    (start, factor), *rest = factors.items()
    between = f"{percent(min(own))} to {percent(max(own))}"
    told = f", with {factor} the error of NeumannRBP ({between}) from the {start}"
    return "".join([told, *(f" and {factor} from the {start}" for start, factor in rest)])


def percent(share: float) -> str:
    """Formats a share in percent, with two digits."""
    return f"{float(f'{100 * share:.2g}'):g}%"


def _factor(factor: float) -> str:
    return f"{factor:.{0 if factor >= 10 else 2}f}"


def table(findings: list[Finding]) -> str:
    """Formats all comparisons as Markdown, with a heading and a table for each claim."""
    parts = []
    for claim in dict.fromkeys(finding.claim for finding in findings):
        found = [finding for finding in findings if finding.claim == claim]
        rows = [[one.where, f"**{one.verdict}**", one.figure, one.version] for one in found]
        parts.append(f"### {claim}\n\n{markdown(['compared', 'verdict', 'values', 'version'], rows)}")
    return "\n\n".join(parts)
