"""The report of a sweep: a CSV file of all runs, a table of means and differences, and a figure."""

import csv
import io
import math
from pathlib import Path
from typing import NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rbp_lightning.cli.sweep.outcome import Outcome
from rbp_lightning.cli.sweep.paired import mean_and_spread, paired_difference
from rbp_lightning.cli.sweep.planned import Planned
from rbp_lightning.cli.whole_files import written_whole
from rbp_lightning.diagnostics.log_figure import can_draw

_PAIRED = """The difference to the first row is paired by seed: its mean and, in brackets, the 95 % confidence interval
of that mean (Student's t). If the interval excludes 0, the two rows differ. One in twenty comparisons of equals has
such an interval by chance; there is no correction for several rows."""


class Ended(NamedTuple):
    """A run that has ended.

    Attributes:
        run: The run.
        outcome: Its outcome.
    """

    run: Planned
    outcome: Outcome


def summarise(ended: list[Ended], metric: str, mode: str) -> list[list[str]]:
    """Returns a row for each combination: name, number of seeds, mean, difference to the first row, and a verdict.

    Args:
        ended: The runs.
        metric: The metric that is compared.
        mode: Whether a low (``min``) or a high (``max``) value is better.
    """
    groups = _by_title(ended, metric)
    first = next(iter(groups.values()), {})
    rows = []
    for title, values in groups.items():
        difference = paired_difference(values, first) if values is not first else None
        cells = ["", ""]
        if difference is not None:
            worse = (difference.low if mode == "min" else -difference.high) > 0
            better = (difference.high if mode == "min" else -difference.low) < 0
            interval = f"[{difference.low:.3g}, {difference.high:.3g}]"
            cells = [f"{difference.mean:+.3g} {interval}", "worse" if worse else "better" if better else "alike"]
        rows.append([title, str(len(values)), mean_and_spread(list(values.values())), *cells])
    return rows


def write_report(folder: Path, ended: list[Ended], metric: str, mode: str, searched: bool = False) -> None:
    """Writes ``runs.csv``, ``report.md`` and ``report.png``, and prints the table.

    Without matplotlib there is no ``report.png``.

    Args:
        folder: The sweep's folder.
        ended: The runs.
        metric: The metric that is compared.
        mode: Whether a low (``min``) or a high (``max``) value is better.
        searched: Whether the runs are trials of a search, which are ranked instead of compared.
    """
    header, rows = ["run", "seeds", metric, "difference to the first", "verdict"], summarise(ended, metric, mode)
    if searched:
        header = ["run", "state", metric]
        rows = [
            [one.run.title, one.outcome.state, f"{one.outcome.value(metric):.4g}"]
            for one in _ranked(ended, metric, mode)
        ]
    table = Table(*header, box=SIMPLE_HEAD, title=f"{metric}, {'lower' if mode == 'min' else 'higher'} is better")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    _write_csv(folder / "runs.csv", ended)
    failed = [one for one in ended if one.outcome.state == "failed"]
    lines = [f"# {metric} of {len(ended)} runs", "", _markdown(header, rows), ""]
    lines += [] if searched or len(rows) < 2 else [_PAIRED, ""]
    lines += (
        ["## Failed", "", *(f"- {one.run.name}: {one.outcome.error} ({one.run.log})" for one in failed), ""]
        if failed
        else []
    )
    drawn = can_draw() and len(failed) < len(ended)
    lines += [f"![{metric} of each run](report.png)", ""] if drawn else []
    with written_whole(folder / "report.md") as unfinished:
        unfinished.write_text("\n".join(lines))
    if drawn:
        _draw(folder / "report.png", [row[0] for row in rows], _by_title(ended, metric), metric)
    print(f"Report: {folder / 'report.md'}")


def _by_title(ended: list[Ended], metric: str) -> dict[str, dict[int, float]]:
    groups: dict[str, dict[int, float]] = {}
    for one in ended:
        group = groups.setdefault(one.run.title, {})
        if one.outcome.state != "failed":
            group[one.run.seed] = one.outcome.value(metric)
    return groups


def _ranked(ended: list[Ended], metric: str, mode: str) -> list[Ended]:
    sign = 1 if mode == "min" else -1
    # Pruned and failed runs come last, and so does NaN.
    return sorted(ended, key=lambda one: (one.outcome.state != "finished", _nan_last(sign * one.outcome.value(metric))))


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _write_csv(path: Path, ended: list[Ended]) -> None:
    keys = list(dict.fromkeys(key for one in ended for key in one.run.values))
    metrics = sorted({name for one in ended for name in one.outcome.metrics})
    content = io.StringIO(newline="")
    writer = csv.writer(content)
    writer.writerow([*keys, "seed", "state", *metrics, "seconds", "folder", "error"])
    for run, outcome in ended:
        measured = [outcome.metrics.get(name, "") for name in metrics]
        seconds = "" if outcome.seconds is None else outcome.seconds
        varied = [run.values.get(key, "") for key in keys]
        writer.writerow([*varied, run.seed, outcome.state, *measured, seconds, run.folder, outcome.error])
    with written_whole(path) as unfinished:
        unfinished.write_text(content.getvalue(), newline="")


def _markdown(header: list[str], rows: list[list[str]]) -> str:
    lines = [f"| {' | '.join(cells)} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def _draw(path: Path, titles: list[str], groups: dict[str, dict[int, float]], metric: str) -> None:
    """Draws a point for each run, and a line at each mean."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 1.2 + 0.35 * len(titles)), layout="constrained")
    axes = figure.add_subplot()
    for place, title in enumerate(titles):
        values = list(groups[title].values())
        axes.plot(values, [place] * len(values), "o", alpha=0.4, color="C0")
        if values:
            axes.plot(sum(values) / len(values), place, "|", markersize=20, color="C1")
    axes.set_yticks(range(len(titles)), titles)
    axes.invert_yaxis()
    axes.set_xlabel(metric)
    with written_whole(path) as unfinished:
        figure.savefig(unfinished, dpi=120, format="png")
