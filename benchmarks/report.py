"""Formats of figures and tables."""

import csv
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path


def median_and_quartiles(values: Sequence[float], digits: int = 2) -> str:
    """Formats the median of at least two values, with quartiles in brackets."""
    low, middle, high = statistics.quantiles(values, n=4)
    return f"{middle:.{digits}f} ({low:.{digits}f}–{high:.{digits}f})"  # noqa: RUF001


def markdown(header: Sequence[object], rows: Sequence[Sequence[object]]) -> str:
    """Formats a table as Markdown.

    Args:
        header: Titles of the columns.
        rows: Cells of each row.

    Example:
        >>> print(markdown(["estimator", "steps"], [["RBP", 20]]))
        | estimator | steps |
        |---|---|
        | RBP | 20 |
    """
    lines = [f"| {' | '.join(map(str, cells))} |" for cells in (header, *rows)]
    return "\n".join([lines[0], "|---" * len(header) + "|", *lines[1:]])


def as_written(rows: Sequence[Mapping[str, object]]) -> str:
    """Formats rows as Markdown, with the columns of the CSV file."""
    return markdown(list(rows[0]), [list(row.values()) for row in rows])


def write_csv(path: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """Writes rows into a CSV file.

    Args:
        path: The file; its folder is created.
        rows: The rows, each by column; all have the same columns.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
