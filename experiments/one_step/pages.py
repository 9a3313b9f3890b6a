"""The tables of the study on a page, from its CSV file."""

import re
from collections.abc import Callable

from experiments.one_step.report import audits, gradients, relations, results
from experiments.one_step.study import moments
from experiments.one_step.tasks import TASKS, VARIANTS
from experiments.runs import Row
from rbp_lightning import UserError

Layout = Callable[[list[Row]], str]

STATES = {"": "one", " of two states": "two"}
"""The cell of the runs in a table, by the ending of the table's name."""


def sizes_of(rows: list[Row]) -> list[int]:
    """Sizes of the test examples of a file."""
    return [int(found[1]) for name in rows[0] if (found := re.fullmatch(r"exact (\d+)", name))]


def of_runs(which: Row, layout: Layout) -> Layout:
    """A layout of some of a file's runs.

    Args:
        which: The values of the runs in these columns.
        layout: The layout.

    Raises:
        UserError: When it lays out a file without such runs.
    """

    def laid_out(rows: list[Row]) -> str:
        if found := [row for row in rows if which.items() <= row.items()]:
            return layout(found)
        wanted = ", ".join(f"{name}={value}" for name, value in which.items())
        raise UserError(f"The study has no runs with {wanted} in this file: run them, or name another table.")

    return laid_out


def layouts_of(cell: str, ending: str) -> dict[str, Layout]:
    """The layout of each table of the runs of a cell, by the table's name.

    Args:
        cell: The cell.
        ending: The ending of the names.
    """
    found = {}
    for name in VARIANTS:
        shown = f"results{ending}" + (f" with {name}" if name != "plain" else "")
        found[shown] = of_runs({"cell": cell, "variant": name}, lambda rows: results(rows, sizes_of(rows)))
    plain = {"cell": cell, "variant": "plain"}
    for name in ("JFB", "BPTT"):
        found[f"gradients{ending} by {name}"] = of_runs(
            plain | {"estimator": name}, lambda rows: gradients(rows, moments(int(rows[0]["batches"])))
        )
    found[f"relations{ending}"] = of_runs(plain, lambda rows: relations(rows, sizes_of(rows)))
    found[f"audits{ending}"] = of_runs(plain, lambda rows: audits(rows, sizes_of(rows)))
    return found


LAYOUTS: dict[str, Layout] = {
    f"one_step_{task}: {name}": layout
    for task in TASKS
    for ending, cell in STATES.items()
    for name, layout in layouts_of(cell, ending).items()
}
"""The layout of each table of the study's files, by file and table; pages show some of them."""
