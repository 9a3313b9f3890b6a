"""Generated Sudoku puzzles."""

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import one_hot

from datamodules.puzzles import IGNORED, Puzzles, check_sizes
from datamodules.sudoku_generation import BOXES, Grid, puzzle
from rbp_lightning.errors import UserError, check_count

TRIES = 20
"""The number of attempts for each puzzle."""


class Sudoku(Puzzles):
    """Sudoku puzzles with a unique solution; more empty cells make them harder.

    ``inputs`` are 1.0 in the channel of a given digit and 0.0 elsewhere, of shape ``[batch, side, side, side]``.
    ``targets`` are the digits of empty cells, counted from 0, and ``IGNORED`` in given cells, of shape
    ``[batch, side, side]``; ``size`` is the number of empty cells. No puzzle occurs twice, but puzzles may share a
    solution: there are only 288 of 4 x 4 cells.

    Args:
        side: Cells per side, which is also the number of digits: 4, 6 or 9, in boxes of 2 x 2, 2 x 3 or 3 x 3.
        empty: Number of empty cells in training; ``None`` for half of the cells.
        val_empty: Numbers of empty cells in validation; ``None`` for that of training.
        test_empty: Numbers of empty cells in test and prediction; ``None`` for that of training.
        num_train: Number of training puzzles.
        num_val: Number of validation puzzles for each number of empty cells.
        num_test: Number of test puzzles for each number of empty cells.
        batch_size: Batch size per process.
        data_seed: Seed of all puzzles and of their order in training.

    Raises:
        UserError: If an argument is out of its range, or too few puzzles are found.

    Example:
        >>> data = Sudoku(empty=6, num_train=3, num_val=1, num_test=1)
        >>> data.setup("fit")
        >>> batch = next(iter(data.train_dataloader()))
        >>> batch["inputs"].shape, int(batch["inputs"].sum())  # ten digits of each are given
        (torch.Size([3, 4, 4, 4]), 30)
    """

    def __init__(
        self,
        side: Literal[4, 6, 9] = 4,
        empty: int | None = None,
        val_empty: Sequence[int] | None = None,
        test_empty: Sequence[int] | None = None,
        num_train: int = 6000,
        num_val: int = 256,
        num_test: int = 256,
        batch_size: int = 64,
        data_seed: int = 0,
    ) -> None:
        self.side, cells = check_side(self, side), side * side
        train = cells // 2 if empty is None else check_count(self, "empty", empty, 1, cells - 1)
        val = check_sizes(self, "val_empty", [train] if val_empty is None else val_empty, 1, cells - 1)
        test = check_sizes(self, "test_empty", [train] if test_empty is None else test_empty, 1, cells - 1)
        super().__init__([train], val, test, num_train, num_val, num_test, batch_size, data_seed)
        self.save_hyperparameters()

    def draw(self, size: int, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws distinct puzzles."""
        found = {}
        for _ in range(TRIES * count):
            drawn = puzzle(self.side, size, generator)
            if drawn is not None:
                found[drawn[0].tobytes()] = drawn
            if len(found) == count:
                break
        else:
            raise UserError(
                f"Sudoku: {TRIES * count} tries found {len(found)} different puzzles of {self.side} x {self.side} "
                f"cells with {size} of them empty, but num_train, num_val and num_test ask for {count}: lower these or "
                "empty."
            )
        return as_tensors(*(np.stack(part) for part in zip(*found.values(), strict=True)))


def as_tensors(given: Grid, solutions: Grid) -> tuple[Tensor, Tensor]:
    """Returns the inputs and targets of puzzles.

    Args:
        given: Digits from 1, and 0 for empty cells, of shape ``[count, side, side]``.
        solutions: The full grids.
    """
    digits, solved = torch.from_numpy(given), torch.from_numpy(solutions)
    inputs = one_hot(digits, given.shape[-1] + 1)[..., 1:].movedim(-1, 1).float()
    return inputs, torch.where(digits == 0, solved - 1, IGNORED)


def check_side(owner: object, side: int) -> int:
    """Checks the side of a grid, and returns it.

    Args:
        owner: The object whose argument it is.
        side: The argument's value.

    Raises:
        UserError: If it is not 4, 6 or 9.
    """
    if side not in BOXES or not isinstance(side, int):
        raise UserError(f"{type(owner).__name__}: side={side!r} must be one of {', '.join(map(str, BOXES))}.")
    return side
