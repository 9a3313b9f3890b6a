"""Tables of pages from the ``runs.csv`` of a sweep over estimators."""

import statistics
from collections.abc import Callable

from benchmarks.report import markdown
from experiments.runs import Row, mean_and_spread
from rbp_lightning.cli.sweep.variations import title


def of_estimators(shares: dict[str, str]) -> Callable[[list[Row]], str]:
    """Returns a layout with means and standard deviations over the seeds, and median seconds.

    Args:
        shares: The metrics, from 0 to 1, each with the title of its column; they are shown in percent.
    """

    def table(rows: list[Row]) -> str:
        lines = []
        for estimator in dict.fromkeys(row["estimator"] for row in rows):
            runs = [row for row in rows if row["estimator"] == estimator]
            percentages = [mean_and_spread([100 * float(run[metric]) for run in runs]) for metric in shares]
            seconds = statistics.median(float(run["seconds"]) for run in runs)
            name = title({"estimator": estimator})
            lines.append([name, *(f"{one} %" for one in percentages), f"{seconds:.0f}", len(runs)])
        return markdown(["gradient", *shares.values(), "seconds", "seeds"], lines)

    return table
