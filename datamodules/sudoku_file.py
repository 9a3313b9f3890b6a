"""Sudoku puzzles from a file."""

import csv
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import numpy as np
from torch import Tensor

from datamodules.files import data_directory, read_bytes, refused_unless
from datamodules.puzzles import Puzzles
from datamodules.sudoku import as_tensors, check_side
from datamodules.sudoku_generation import Grid, is_solution
from rbp_lightning.errors import UserError

DIGITS = set(".0123456789")


class SudokuFile(Puzzles):
    r"""Sudoku puzzles from a CSV file, each on a line with its solution.

    Both are fields of as many characters as a grid has cells, 81 of 9 x 9, row by row: digits, and 0 or a dot where a
    cell is empty. The puzzle comes first; other fields, such as a number or a rating, are passed over, and so is a
    first line of titles. The public collections of puzzles have this form. Training, validation and test are drawn
    from the file, none of them twice. That a puzzle has no other solution is not checked. Batches are those of
    ``Sudoku``, but that ``size`` is the side.

    Args:
        file: The file, in ``data_dir``; or its whole path.
        data_dir: A folder; ``None`` stands for the environment variable ``RBP_DATA_DIR``, or else ``data``.
        side: Cells of a side: 4, 6 or 9.
        num_train: How many puzzles to train on.
        num_val: How many are in validation.
        num_test: How many are in test.
        batch_size: Puzzles in a batch of one process.
        data_seed: Seed of the drawing and of the order in training.

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
        """Draws puzzles, none of them twice."""
        path = data_directory(self.data_dir) / self.file
        if not path.is_file():
            raise UserError(
                f"Missing {path.name}: not found in {path.parent}. Put it there, or set file, data_dir or RBP_DATA_DIR."
            )
        with refused_unless(path, "a CSV file of Sudoku puzzles"):
            lines = read_bytes(path).decode().splitlines()
        found = {}
        for given, solution in puzzles_of(path, lines, self.side, generator):
            found[given.tobytes()] = given, solution
            if len(found) == count:
                return as_tensors(*(np.stack(part) for part in zip(*found.values(), strict=True)))
        raise UserError(
            f"{path} has {len(found)} different puzzles of {size} x {size} cells, but num_train, num_val and num_test "
            f"ask for {count}: lower these."
        )


def puzzles_of(path: Path, lines: list[str], side: int, generator: np.random.Generator) -> Iterator[tuple[Grid, Grid]]:
    """The puzzles of a file in random order, each with its solution, without those that are solved.

    Args:
        path: The file.
        lines: Its lines.
        side: Cells of a side.
        generator: Where randomness comes from.

    Yields:
        Digits from 1, and 0 where a cell is empty, of shape ``[side, side]``; and the full grid.

    Raises:
        UserError: If a line holds no puzzle and its solution.
    """
    for number in generator.permutation(len(lines)):
        fields = next(csv.reader([lines[number]]), [])
        grids = [field for field in fields if len(field) == side * side and set(field) <= DIGITS]
        if len(grids) != 2:
            if number == 0 or not fields:
                continue
            raise UserError(
                f"Line {number + 1} of {path} has {len(grids)} fields of {side * side} digits or dots, but a puzzle "
                "and its solution are two: correct it, or set side."
            )
        given, solution = (
            np.array([int(digit) for digit in field.replace(".", "0")]).reshape(side, side) for field in grids
        )
        if not is_solution(solution, given):
            raise UserError(f"Line {number + 1} of {path}: the second grid is no solution of the first: correct it.")
        if not given.all():
            yield given, solution
