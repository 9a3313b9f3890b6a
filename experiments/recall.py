"""The table of a sweep of the associative memory."""

import statistics

from benchmarks.report import markdown
from experiments.runs import Row, mean_and_spread


def table(rows: list[Row]) -> str:
    """Formats the ``runs.csv`` of a sweep over estimators and seeds as Markdown.

    Args:
        rows: The runs.
    """
    lines = []
    for estimator in dict.fromkeys(row["estimator"] for row in rows):
        runs = [row for row in rows if row["estimator"] == estimator]
        exact = [100 * float(row["test/exact_recall"]) for row in runs]
        wrong = [100 * float(row["test/pixel_error"]) for row in runs]
        seconds = statistics.median(float(row["seconds"]) for row in runs)
        lines.append(
            [estimator, f"{mean_and_spread(exact)} %", f"{mean_and_spread(wrong)} %", f"{seconds:.0f}", len(runs)]
        )
    return markdown(["estimator", "recalled exactly", "wrong pixels", "seconds", "seeds"], lines)
