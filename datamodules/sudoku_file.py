"""Sudoku puzzles from a CSV file."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from datamodules.files import data_directory, read_bytes, reading
from datamodules.puzzles import Puzzles
from datamodules.sudoku import as_tensors, check_side
from datamodules.sudoku_generation import Grid, is_solution
from rbp_lightning.errors import UserError

DIGITS = set(".0123456789")


class SudokuFile(Puzzles):
    r"""Sudoku puzzles from a CSV file, each on a line with its solution.

    A line has the puzzle and then its solution, each a field with a character per cell (81 for 9 x 9), row by row: a
    digit, or 0 or a dot for an empty cell. Other fields, such as a number or a rating, and a header line are ignored.
    The public collections of puzzles have this form. Training, validation and test are distinct puzzles drawn from the
    file. Whether a puzzle has other solutions is not checked. Batches are those of ``Sudoku``, except that ``size`` is
    the side.

    Args:
        file: The file's name in ``data_dir``, or its full path.
        data_dir: A folder; ``None`` for the environment variable ``RBP_DATA_DIR`` or else ``data``.
        side: Cells per side: 4, 6 or 9.
        num_train: Number of training puzzles.
        num_val: Number of validation puzzles.
        num_test: Number of test puzzles.
        batch_size: Batch size per process.
        data_seed: Seed of the splits and of the order in training.

    Raises:
        UserError: If an argument is out of its range, or the file is missing, damaged or too short.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "four.csv")
        >>> rows = ["1234341221434301,1234341221434321", ".234341221434321,1234341221434321"]
        >>> _ = path.write_text("\n".join(["puzzle,solution", *rows, "1234.41221434321,1234341221434321"]))
        >>> data = SudokuFile(str(path), side=4, num_train=1, num_val=1, num_test=1)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader()))["inputs"].shape
        torch.Size([1, 4, 4, 4])
    """

    def __init__(
        self,
        file: str = "sudoku.csv",
        data_dir: str | None = None,
        side: Literal[4, 6, 9] = 9,
        num_train: int = 1000,
        num_val: int = 256,
        num_test: int = 256,
        batch_size: int = 64,
        data_seed: int = 0,
    ) -> None:
        self.side = check_side(self, side)
        super().__init__([side], [side], [side], num_train, num_val, num_test, batch_size, data_seed)
        self.file, self.data_dir = file, data_dir
        self.save_hyperparameters()

    def draw(self, size: int, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws distinct puzzles."""
        path = data_directory(self.data_dir) / self.file
        if not path.is_file():
            raise UserError(
                f"Missing {path.name}: not found in {path.parent}. Put it there, or set file, data_dir or RBP_DATA_DIR."
            )
        with reading(path, "a CSV file of Sudoku puzzles"):
            lines = read_bytes(path).decode().splitlines()
        found = {}
        for given, solution in read_puzzles(path, lines, self.side, generator):
            found[given.tobytes()] = given, solution
            if len(found) == count:
                return as_tensors(*(np.stack(part) for part in zip(*found.values(), strict=True)))
        raise UserError(
            f"{path} has {len(found)} different puzzles of {size} x {size} cells, but num_train, num_val and num_test "
            f"ask for {count}: lower these."
        )


def read_puzzles(
    path: Path, lines: list[str], side: int, generator: np.random.Generator
) -> Iterator[tuple[Grid, Grid]]:
    """Yields the puzzles of a file with their solutions in random order, except for those without empty cells.

    Args:
        path: The file.
        lines: The file's lines.
        side: Cells per side.
        generator: The random generator.

    Yields:
        The puzzle, digits from 1 and 0 for empty cells, of shape ``[side, side]``, and its solution.

    Raises:
        UserError: If a line does not hold a puzzle and its solution.
    """
    for number in generator.permutation(len(lines)):
        fields = next(csv.reader([lines[number]]), [])
        grids = [field for field in fields if len(field) == side * side and set(field) <= DIGITS]
        if len(grids) != 2:
            if number == 0 or not fields:
                continue
            raise UserError(
                f"Line {number + 1} of {path} has {len(grids)} fields of {side * side} digits or dots instead of "
                "two, a puzzle and its solution: correct it, or set side."
            )
        given, solution = (
            np.array([int(digit) for digit in field.replace(".", "0")]).reshape(side, side) for field in grids
        )
        if not is_solution(solution, given):
            raise UserError(f"Line {number + 1} of {path}: the second grid is not a solution of the first: correct it.")
        if not given.all():
            yield given, solution
