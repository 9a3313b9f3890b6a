"""The tables of the pages, out of the CSV files of what was measured."""

import csv
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from benchmarks import gradients
from benchmarks.graph_scale import grow
from benchmarks.scaling import compare
from experiments import classification, reasoning
from rbp_lightning.errors import UserError

PAGES = Path("docs")
RESULTS = PAGES / "results"

Layout = Callable[[list[dict[str, Any]]], str]


def _of_numbers(layout: Layout) -> Layout:
    """A layout that takes numbers, and lists of them, where the file has text."""
    return lambda rows: layout([{name: _number(cell) for name, cell in row.items()} for row in rows])


def _number(cell: str) -> int | float | str | list[float]:
    if re.fullmatch(r"[-\d.e+]+( [-\d.e+]+)+", cell):
        return [float(part) for part in cell.split()]
    try:
        return int(cell) if cell.isdecimal() else float(cell)
    except ValueError:
        return cell


TABLES: dict[str, Layout] = {
    "classification_digits": classification.table_of_file,
    "classification_mnist": classification.table_of_file,
    "gradients": gradients.table,
    "graphs": _of_numbers(grow.table),
    "mazes": reasoning.table_of_file,
    "scaling": _of_numbers(compare.table),
    "sudoku": reasoning.table_of_file,
}
"""What lays out the rows of a file, by its name."""

_BLOCK = re.compile(r"(<!-- table: (\w+)\.csv -->\n)(.*?)(\n<!-- end of table -->)", re.DOTALL)


def laid_out(name: str, folder: Path = RESULTS) -> str:
    """A table in Markdown.

    Args:
        name: Name of its file, without the ending.
        folder: Where the file is.

    Raises:
        UserError: If there is no such file, or nothing that lays it out.
    """
    if name not in TABLES:
        raise UserError(f"Nothing lays out {name}.csv: add it to experiments/tables.py, which has {', '.join(TABLES)}.")
    path = folder / f"{name}.csv"
    if not path.is_file():
        raise UserError(f"There is no {path}: copy it there from what the command has written.")
    with path.open(newline="") as file:
        return TABLES[name](list(csv.DictReader(file)))


def with_tables(text: str, folder: Path = RESULTS) -> str:
    """A page whose tables are those of the files.

    A table stands between ``<!-- table: NAME.csv -->`` and ``<!-- end of table -->``.

    Args:
        text: The page.
        folder: Where the files are.

    Raises:
        UserError: If a file is not there.
    """
    return _BLOCK.sub(lambda block: f"{block[1]}{laid_out(block[2], folder)}{block[4]}", text)


def tables() -> None:
    """Writes the tables of the pages out of the CSV files in docs/results.

    Raises:
        UserError: If a page names a file that is not there.
    """
    for page in sorted(PAGES.glob("*.md")):
        text = page.read_text()
        written = with_tables(text)
        if written != text:
            page.write_text(written)
            print(f"{page} has changed.")
