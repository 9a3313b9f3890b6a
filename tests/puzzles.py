"""Writes puzzle files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np


def write_puzzles(path: Path, puzzles: Sequence[tuple[np.ndarray, np.ndarray]]) -> None:
    """Writes Sudoku puzzles with their solutions, one per line."""
    lines = [",".join("".join(map(str, grid.ravel())) for grid in one) for one in puzzles]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["puzzle,solution", *lines]))
