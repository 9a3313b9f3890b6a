"""Tables of pages from the ``runs.csv`` of a sweep."""

import statistics
from collections.abc import Callable
from typing import Any

from benchmarks.report import markdown
from experiments.runs import mean_and_spread
from rbp_lightning.cli.sweep.variations import title


def of_estimators(percentages: dict[str, str]) -> Callable[[list[dict[str, Any]]], str]:
    """A layout for a sweep over estimators: means and standard deviations over the seeds, and median seconds.

    Args:
        percentages: Metrics between 0 and 1, each with the title of its column.
    """

    def table(rows: list[dict[str, Any]]) -> str:
        lines = []
        for estimator in dict.fromkeys(row["estimator"] for row in rows):
            runs = [row for row in rows if row["estimator"] == estimator]
            shares = [mean_and_spread([100 * float(run[metric]) for run in runs]) for metric in percentages]
            seconds = statistics.median(float(run["seconds"]) for run in runs)
            name = title({"estimator": estimator})
            lines.append([name, *(f"{share} %" for share in shares), f"{seconds:.0f}", len(runs)])
        return markdown(["gradient", *percentages.values(), "seconds", "seeds"], lines)

    return table
