"""The files of a sweep: each training, means and differences, and a picture of them."""

import csv
import io
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

_PAIRED = """The difference is that to the first row, seed by seed: its mean and, in brackets, Student's t interval at
95 % for the mean of the pairs' differences. An interval without 0 says that the two differ. Of twenty comparisons of
what is alike, one has such an interval by chance, and no correction is made for several rows."""


class Ended(NamedTuple):
    """A training that has ended.

    Attributes:
        run: The training.
        outcome: Its outcome.
    """

    run: Planned
    outcome: Outcome


def summarise(ended: list[Ended], metric: str, mode: str) -> list[list[str]]:
    """A row for each combination: its name, seeds, mean and spread, difference to the first row, and a verdict.

    Args:
        ended: The trainings.
        metric: What is compared.
        mode: Whether its least (``min``) or greatest (``max``) value is best.
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

    The picture is left out where matplotlib is not installed.

    Args:
        folder: Where to.
        ended: The trainings.
        metric: What is compared.
        mode: Whether its least (``min``) or greatest (``max``) value is best.
        searched: Whether they are those of a search, which are ranked and not compared.
    """
    header, rows = ["training", "seeds", metric, "difference to the first", "it is"], summarise(ended, metric, mode)
    if searched:
        header = ["training", "state", metric]
        rows = [
            [one.run.title, one.outcome.state, f"{one.outcome.value(metric):.4g}"]
            for one in _ranked(ended, metric, mode)
        ]
    table = Table(*header, box=SIMPLE_HEAD, title=f"{metric}, {'least' if mode == 'min' else 'greatest'} is best")
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    _write_csv(folder / "runs.csv", ended)
    failed = [one for one in ended if one.outcome.state == "failed"]
    lines = [f"# {metric} of {len(ended)} trainings", "", _markdown(header, rows), ""]
    lines += [] if searched or len(rows) < 2 else [_PAIRED, ""]
    lines += (
        ["## Failed", "", *(f"- {one.run.name}: {one.outcome.error} ({one.run.log})" for one in failed), ""]
        if failed
        else []
    )
    drawn = can_draw() and len(failed) < len(ended)
    lines += [f"![{metric} of each training](report.png)", ""] if drawn else []
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
    # Pruned and failed ones last, and so is what is not a number.
    return sorted(ended, key=lambda one: (one.outcome.state != "finished", _or_last(sign * one.outcome.value(metric))))


def _or_last(value: float) -> float:
    return value if value == value else float("inf")


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
    """A point for each training, and a line at each mean."""
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
