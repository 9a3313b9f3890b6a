"""The tables of the study on a page, from its CSV file."""

import re
from collections.abc import Callable

from experiments.one_step.report import gradients, relations, results
from experiments.one_step.study import moments
from experiments.runs import Row

Layout = Callable[[list[Row]], str]

PLAIN = {"cell": "one", "variant": "plain"}
"""The trainings of which the page shows the gradients, too."""


def sizes_of(rows: list[Row]) -> list[int]:
    """Sizes of the test puzzles of a file."""
    return [int(found[1]) for name in rows[0] if (found := re.fullmatch(r"exact (\d+)", name))]


def of_runs(which: Row, layout: Layout) -> Layout:
    """A layout of some of a file's runs.

    Args:
        which: The values of the runs in these columns.
        layout: The layout.
    """
    return lambda rows: layout([row for row in rows if which.items() <= row.items()])


LAYOUTS: dict[str, Layout] = {
    "results": of_runs(PLAIN, lambda rows: results(rows, sizes_of(rows))),
    **{
        f"results with {name}": of_runs(PLAIN | {"variant": name}, lambda rows: results(rows, sizes_of(rows)))
        for name in ("random start", "penalty")
    },
    **{
        f"gradients by {name}": of_runs(
            PLAIN | {"estimator": name}, lambda rows: gradients(rows, moments(int(rows[0]["batches"])))
        )
        for name in ("JFB", "BPTT")
    },
    "relations": of_runs(PLAIN, lambda rows: relations(rows, sizes_of(rows))),
}
"""The layout of each table of the study's file, by its name."""
