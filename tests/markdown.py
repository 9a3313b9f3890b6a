"""Reads Markdown tables."""

import re


def rows_of(text: str) -> list[list[str]]:
    """The cells of every row of the tables in a text, headers included."""
    lines = [line.strip() for line in text.splitlines() if line.lstrip().startswith("|")]
    rows = [[cell.strip() for cell in line.removeprefix("|").removesuffix("|").split("|")] for line in lines]
    return [row for row in rows if not all(re.fullmatch(r":?-+:?", cell) for cell in row)]


def row_of(text: str, *names: str) -> list[str]:
    """The cells of the only row that has all names in its first cell."""
    (found,) = [row for row in rows_of(text) if all(name in row[0] for name in names)]
    return found


def numbers(text: str) -> list[float]:
    """The numbers in a text."""
    return [float(found) for found in re.findall(r"(?<![\w.])[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?", text)]
