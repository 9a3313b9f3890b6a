"""Tables of pages from the ``runs.csv`` of a sweep over estimators."""

import statistics

from benchmarks.report import markdown
from experiments.runs import Row, estimators_in, mean_and_spread
from rbp_lightning.cli.sweep.variations import title


def table(rows: list[Row], shares: dict[str, str]) -> str:
    """Formats means and standard deviations over the seeds, and median seconds, as Markdown.

    Args:
        rows: Runs of one sweep, from the CSV file.
        shares: The metrics, from 0 to 1, each with the title of its column; they are shown in percent.
    """
    lines = []
    for estimator in estimators_in(rows):
        runs = [row for row in rows if row["estimator"] == estimator]
        percentages = [mean_and_spread([100 * float(run[metric]) for run in runs]) for metric in shares]
        seconds = [float(run["seconds"]) for run in runs if run["seconds"]]  # resumed runs have none
        name = title({"estimator": estimator})
        middle = f"{statistics.median(seconds):.0f}" if seconds else "–"  # noqa: RUF001
        lines.append([name, *(f"{one} %" for one in percentages), middle, len(runs)])
    return markdown(["gradient", *shares.values(), "seconds", "seeds"], lines)
