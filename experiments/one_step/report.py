"""The tables and the picture of the study."""

import math
import statistics
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from scipy.stats import spearmanr

from benchmarks.report import markdown
from experiments.one_step.gradients import MEASURED
from experiments.one_step.limits import KINDS
from experiments.runs import Row, label, mean_and_spread
from rbp_lightning.cli.sweep.paired import paired_difference

Group = tuple[str, str]
"""Cell and variant."""


def groups_of(rows: list[Row]) -> dict[Group, list[Row]]:
    """Runs by cell and variant."""
    found: dict[Group, list[Row]] = {}
    for row in rows:
        found.setdefault((row["cell"], row["variant"]), []).append(row)
    return found


def title(group: Group) -> str:
    """The title of a cell and a variant."""
    return f"{group[0]} latent state{'s' * (group[0] == 'two')}, {group[1]}"


def report(rows: list[Row], sizes: list[int], moments: list[int]) -> str:
    """Formats the study as Markdown.

    Args:
        rows: The runs.
        sizes: Sizes of the test puzzles or images.
        moments: Numbers of batches at which gradients were measured.
    """
    parts = []
    for group, runs in groups_of(rows).items():
        parts += [f"### {title(group)}", results(runs, sizes)]
        parts += ["What the audit says of the last parameters:", audits(runs, sizes)]
        for name, own in _by_estimator(runs).items():
            parts += [f"Gradients along the trainings by {label(name)}:", gradients(own, moments)]
    return "\n\n".join([*parts, relations(rows, sizes)])


def results(rows: list[Row], sizes: list[int]) -> str:
    """The results of the trainings: means over the seeds, and paired differences to the first estimator."""
    last, first = sizes[-1], None
    lines: list[list[str]] = []
    for name, runs in _by_estimator(rows).items():
        values = {int(row["seed"]): 100 * float(row[f"exact {last}"]) for row in runs}
        first = values if first is None else first
        difference = None if values is first else paired_difference(values, first)
        cells = [mean_and_spread([100 * float(row[f"exact {size}"]) for row in runs], 1) for size in sizes]
        cells += ["" if difference is None else f"{difference.mean:+.1f} [{difference.low:.1f}, {difference.high:.1f}]"]
        cells += [f"{100 * _mean(runs, f'{kind} {last}'):.0f}" for kind in KINDS]
        cells += [f"{_median(runs, f'{figure} {last}'):.2g}" for figure in ("residual", "residual twice", "radius")]
        cells += [
            f"{100 * _mean(runs, f'alike {last}'):.0f}",
            f"{_median(runs, 'processor seconds'):.0f}",
            str(len(runs)),
        ]
        lines.append([label(name), *cells])
    header = ["trained by", *(f"exact at {size}, %" for size in sizes), "difference to the first", *KINDS]
    header += ["residual", "at twice", "radius", "alike, %", "CPU seconds", "seeds"]
    return markdown(header, lines)


def gradients(rows: list[Row], moments: list[int]) -> str:
    """Cosine to the exact adjoint and to BPTT, and relative error, at each moment: medians over the trainings."""
    lines = []
    for figure in ("spectral radius", "residual"):
        lines.append([figure, *(f"{one:.2g}" for one in over_time(rows, figure)), *("" for _ in moments)])
    for name in MEASURED:
        cells = []
        for reference in ("exact", "BPTT"):
            cosines, errors = (over_time(rows, f"{name}: {figure} to {reference}") for figure in ("cosine", "error"))
            cells += [f"{cosine:.2f} ({error:.2g})" for cosine, error in zip(cosines, errors, strict=True)]
        lines.append([label(name), *cells])
    header = [f"to {reference}, {moment} batches" for reference in ("exact", "BPTT") for moment in moments]
    return markdown(["gradient: cosine (error)", *header], lines)


def audits(rows: list[Row], sizes: list[int]) -> str:
    """What the library's audit says of the last parameters, next to what they solve.

    Shares of the runs whose forward solve it takes as converged, medians of the errors that it reports, and its most
    frequent advice.
    """
    lines = []
    for name, runs in _by_estimator(rows).items():
        solved = mean_and_spread([100 * float(row[f"exact {sizes[-1]}"]) for row in runs], 1)
        settled = [float(row["audit: settled"]) for row in runs if row["audit: advice"] != "refused"]
        advice, count = Counter(row["audit: advice"] for row in runs).most_common(1)[0]
        cells = [f"{100 * statistics.mean(settled):.0f}" if settled else ""]
        for figure in ("residual", "radius", "error", "implicit error"):
            found = [value for value in _values(runs, f"audit: {figure}") if not math.isnan(value)]
            cells.append(f"{statistics.median(found):.2g}" if found else "")
        lines.append([label(name), solved, *cells, f"{advice} ({count} of {len(runs)})"])
    header = ["trained by", f"exact at {sizes[-1]}, %", "converged, %", "residual", "radius", "reported error"]
    return markdown([*header, "least error of an implicit gradient", "advice"], lines)


def relations(rows: list[Row], sizes: list[int]) -> str:
    """Spearman's rank correlations with the share of the largest puzzles solved exactly, over all runs."""
    exact = [float(row[f"exact {sizes[-1]}"]) for row in rows]
    columns = {
        "same answer from two random starts": [float(row[f"alike {sizes[-1]}"]) for row in rows],
        "share of fixed points": [float(row[f"fixed {sizes[-1]}"]) for row in rows],
        "cosine of the gradient it was trained with to the exact one": [own_cosine(row, "exact") for row in rows],
        "cosine of the gradient it was trained with to BPTT's": [own_cosine(row, "BPTT") for row in rows],
    }
    lines = []
    for name, values in columns.items():
        pairs = [(one, other) for one, other in zip(values, exact, strict=True) if math.isfinite(one)]
        varied = len(pairs) > 2 and all(len(set(part)) > 1 for part in zip(*pairs, strict=True))
        found = spearmanr(*zip(*pairs, strict=True)) if varied else None
        cells = ["", ""] if found is None else [f"{found.statistic:+.2f}", f"{found.pvalue:.2g}"]
        lines.append([name, *cells, len(pairs)])
    return markdown([f"rank correlation with exact at {sizes[-1]}", "rho", "p", "runs"], lines)


def own_cosine(row: Row, reference: str) -> float:
    """Mean cosine, over the moments of its training, of the gradient that a run was trained with."""
    cosines = row.get(f"{row['estimator']}: cosine to {reference}", "nan").split()
    return statistics.mean(float(one) for one in cosines)


def over_time(rows: list[Row], figure: str) -> list[float]:
    """The median over the runs at each moment."""
    series = [[float(value) for value in row[figure].split()] for row in rows]
    return [statistics.median(values) for values in zip(*series, strict=True)]


def draw(rows: list[Row], sizes: list[int], moments: list[int], path: Path) -> None:
    """Plots cosines during training, results, and path independence to a PNG file.

    Args:
        rows: The runs.
        sizes: Sizes of the test puzzles or images.
        moments: Numbers of batches at which gradients were measured.
        path: The file.
    """
    groups = groups_of(rows)
    figure = Figure(figsize=(16, 3.4 * len(groups)), layout="constrained")
    panels = figure.subplots(len(groups), 4, squeeze=False)
    for (one, other, outcome, paths), (group, runs) in zip(panels, groups.items(), strict=True):
        by_estimator = _by_estimator(runs)
        for panel, name in ((one, next(iter(by_estimator))), (other, list(by_estimator)[-1])):
            draw_cosines(panel, by_estimator[name], moments)
            panel.set_title(f"{title(group)}, by {label(name)}", fontsize=9)
        for place, (name, own) in enumerate(by_estimator.items()):
            values, alike = ([100 * float(row[f"{kind} {sizes[-1]}"]) for row in own] for kind in ("exact", "alike"))
            outcome.plot(values, [place] * len(values), "o", alpha=0.4, color="C0")
            outcome.plot(statistics.mean(values), place, "|", markersize=18, color="C1")
            paths.plot(alike, values, "o", alpha=0.6, label=label(name))
        outcome.set_yticks(range(len(by_estimator)), [label(name) for name in by_estimator])
        outcome.invert_yaxis()
        outcome.set_xlabel(f"exactly right at size {sizes[-1]}, %")
        paths.set_xlabel("same answer from two starts, %")
        paths.set_ylabel(f"exactly right at size {sizes[-1]}, %")
        paths.legend(fontsize=6, framealpha=0.4)
        other.legend(fontsize=6, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    figure.savefig(path, dpi=80)


def draw_cosines(panel: Axes, rows: list[Row], moments: list[int]) -> None:
    """Plots the median cosine of each gradient to the exact adjoint and to BPTT during training."""
    for place, name in enumerate(MEASURED):
        for reference, style in (("exact", "o-"), ("BPTT", "s:")):
            values = over_time(rows, f"{name}: cosine to {reference}")
            shown = label(name) if reference == "exact" else None
            panel.plot(range(len(moments)), values, style, color=f"C{place}", label=shown, markersize=4)
    panel.set_xticks(range(len(moments)), [str(moment) for moment in moments])
    panel.set_xlabel("batches; solid: to the exact adjoint, dotted: to BPTT", fontsize=8)
    panel.set_ylabel("cosine")


def _by_estimator(rows: list[Row]) -> dict[str, list[Row]]:
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row["estimator"], []).append(row)
    return found


def _values(rows: Iterable[Row], name: str) -> list[float]:
    return [float(row[name]) for row in rows]


def _mean(rows: Iterable[Row], name: str) -> float:
    return statistics.mean(_values(rows, name))


def _median(rows: Iterable[Row], name: str) -> float:
    return statistics.median(_values(rows, name))
