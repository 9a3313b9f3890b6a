"""Writes the tables of the pages from the CSV files of the measurements."""

import csv
import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks import cost, floors, gradients, memory, monitor, reversible, solver_steps
from benchmarks.against import compare as against
from benchmarks.graph_scale import grow as graphs
from benchmarks.jax_peers import compare as jax_peers
from benchmarks.peers import compare as peers
from benchmarks.report import as_written
from benchmarks.scaling import compare as scaling
from experiments import (
    classification,
    hypergradient_error,
    hypergradient_products,
    random_search,
    reasoning,
    sweep_tables,
)
from experiments.one_step import pages as one_step
from experiments.paper import documents, hyperparameters
from experiments.runs import Row, estimators_in
from rbp_lightning.errors import UserError

PAGES = Path("docs")
FOLDERS = (PAGES / "results", Path("experiments/paper"))
"""The folders of the files."""

Layout = Callable[[list[dict[str, Any]]], str]


def _of_numbers(layout: Layout) -> Layout:
    """Gives a layout numbers, and lists of numbers, in place of the file's text."""
    return lambda rows: layout([{name: _number(cell) for name, cell in row.items()} for row in rows])


def _of_estimators(table: Callable[[list[Row], list[str]], str]) -> Layout:
    """A layout of all runs of a file, from a table that takes the runs and their estimators."""
    return lambda rows: table(rows, estimators_in(rows))


def _number(cell: str) -> int | float | str | list[float]:
    if re.fullmatch(r"[-\d.e+]+( [-\d.e+]+)+", cell):
        return [float(part) for part in cell.split()]
    try:
        return int(cell) if cell.isdecimal() else float(cell)
    except ValueError:
        return cell


RECALL = {"test/exact_recall": "recalled exactly", "test/pixel_error": "wrong pixels"}
"""The metrics of the associative memory, each with the title of its column."""

TABLES: dict[str, Layout] = {
    "against": _of_numbers(against.table),
    "citation_cora": partial(sweep_tables.table, shares={"test/accuracy": "test accuracy"}),
    "citation_table": as_written,
    "claims": as_written,
    "classification_digits": _of_estimators(classification.table),
    "classification_mnist": _of_estimators(classification.table),
    "classification_mnist_cost": _of_estimators(classification.table),
    "cora_epoch_table": as_written,
    "cost": _of_numbers(cost.tables_of_file),
    "derivatives": as_written,
    "documents": documents.accuracies,
    "floors": _of_numbers(floors.table),
    "gradients": gradients.table,
    "graphs": _of_numbers(graphs.table),
    "hypergradient_error": _of_numbers(hypergradient_error.table),
    "hypergradient_minibatches": _of_numbers(hypergradient_products.table_of_minibatches),
    "hypergradient_products": _of_numbers(hypergradient_products.table_of_products),
    "hyperparameters": hyperparameters.table,
    "jax": peers.tables,
    "jax_compilation": jax_peers.table_of_compilation,
    "mazes": reasoning.table_of_file,
    "memory": _of_numbers(memory.tables_of_file),
    "monitor": _of_numbers(monitor.table),
    "peers": peers.tables,
    "prefix_sums_table": as_written,
    "random_search": random_search.table,
    "reads": as_written,
    "recall": partial(sweep_tables.table, shares=RECALL),
    "reversible": _of_numbers(reversible.table),
    "scaling": _of_numbers(scaling.table),
    "scaling_devices": _of_numbers(scaling.table_of_devices),
    "solvers": solver_steps.tables,
    "sudoku": reasoning.table_of_file,
    "warm_start_table": as_written,
}
"""The layout of each file, by its name; where a file has several tables, the table's name follows.

``one_step.LAYOUTS`` has more, of which pages need not show all."""

_BLOCK = re.compile(r"(<!-- table: (\w+\.csv(?:: [\w ]+)?) -->\n)(.*?)(<!-- end of table -->)", re.DOTALL)


def laid_out(table: str, folders: Sequence[Path] = FOLDERS) -> str:
    """A table in Markdown.

    Args:
        table: ``NAME.csv``, or ``NAME.csv: TABLE``.
        folders: The folders to look for the file.

    Raises:
        UserError: If there is no such file, or no layout for it.
    """
    name = table.replace(".csv", "", 1)
    layouts = one_step.LAYOUTS | TABLES
    if name not in layouts:
        raise UserError(f"{table} has no layout: add it to experiments/tables.py, which has {', '.join(TABLES)}.")
    file = table.partition(":")[0]
    found = [folder / file for folder in folders if (folder / file).is_file()]
    if not found:
        raise UserError(f"There is no {folders[0] / file}: copy the file that the command wrote.")
    with found[0].open(newline="") as opened:
        return layouts[name](list(csv.DictReader(opened)))


def with_tables(text: str, folders: Sequence[Path] = FOLDERS) -> str:
    """Returns a page with its tables written from the files.

    A table stands between ``<!-- table: NAME.csv -->`` and ``<!-- end of table -->``. If a file has several, the name
    of the table follows, as in ``<!-- table: NAME.csv: results -->``.

    Args:
        text: The page.
        folders: The folders to look for the files.

    Raises:
        UserError: If a file is missing.
    """
    return _BLOCK.sub(lambda block: f"{block[1]}{laid_out(block[2], folders)}\n{block[4]}", text)


def tables() -> None:
    """Writes the tables of the pages from the CSV files in docs/results and experiments/paper.

    Raises:
        UserError: If a page names a file that is missing.
    """
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text()
        written = with_tables(text)
        if written != text:
            page.write_text(written)
            print(f"{page} has changed.")
