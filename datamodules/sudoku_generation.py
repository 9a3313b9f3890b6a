"""Generation of Sudoku puzzles with a unique solution."""

from collections.abc import Iterator
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

Grid = NDArray[np.int64]

BOXES = {4: (2, 2), 6: (2, 3), 9: (3, 3)}
"""Rows and columns of a box, by the side of the grid."""


@lru_cache
def _units(side: int) -> list[list[tuple[int, int, int]]]:
    """The indices of the row, column and box of each cell, among all units of a grid."""
    height, width = BOXES[side]
    per_row = side // width
    return [
        [(row, side + column, 2 * side + row // height * per_row + column // width) for column in range(side)]
        for row in range(side)
    ]


def solutions(grid: Grid, generator: np.random.Generator | None = None) -> Iterator[Grid]:
    """Yields the solutions of a puzzle, by depth-first search from the cell with the fewest candidates.

    Args:
        grid: Digits from 1, and 0 for empty cells, of shape ``[side, side]``.
        generator: The random generator of the order in which digits are tried; ``None`` for ascending order.

    Yields:
        Full grids.

    Example:
        >>> puzzle = np.array([[1, 0, 0, 0], [0, 0, 3, 0], [0, 4, 0, 0], [0, 0, 0, 2]])
        >>> [one.tolist() for one in solutions(puzzle)]
        [[[1, 3, 2, 4], [4, 2, 3, 1], [2, 4, 1, 3], [3, 1, 4, 2]]]
    """
    side = len(grid)
    units = _units(side)
    full = (1 << side) - 1
    cells = grid.tolist()
    used = [0] * (3 * side)  # a bit mask of the digits in each unit
    for row in range(side):
        for column in range(side):
            if cells[row][column]:
                bit = 1 << (cells[row][column] - 1)
                if any(used[unit] & bit for unit in units[row][column]):
                    return
                for unit in units[row][column]:
                    used[unit] |= bit
    empty = {(row, column) for row in range(side) for column in range(side) if not cells[row][column]}

    def search() -> Iterator[Grid]:
        if not empty:
            yield np.array(cells)
            return
        candidates = {}
        for row, column in empty:
            one, two, three = units[row][column]
            candidates[row, column] = full & ~(used[one] | used[two] | used[three])
            if candidates[row, column].bit_count() < 2:
                break
        # The cell breaks ties, since a set has no order.
        row, column = min(candidates, key=lambda cell: (candidates[cell].bit_count(), cell))
        digits = [digit for digit in range(1, side + 1) if candidates[row, column] >> (digit - 1) & 1]
        if generator is not None:
            digits = generator.permutation(digits).tolist()
        empty.remove((row, column))
        for digit in digits:
            cells[row][column] = digit
            for unit in units[row][column]:
                used[unit] ^= 1 << (digit - 1)
            yield from search()
            for unit in units[row][column]:
                used[unit] ^= 1 << (digit - 1)
        cells[row][column] = 0
        empty.add((row, column))

    yield from search()


def is_unique(grid: Grid) -> bool:
    """Whether a puzzle has exactly one solution.

    Args:
        grid: Digits from 1, and 0 for empty cells, of shape ``[side, side]``.
    """
    found = solutions(grid)
    return next(found, None) is not None and next(found, None) is None


def puzzle(side: int, empty: int, generator: np.random.Generator) -> tuple[Grid, Grid] | None:
    """Draws a full grid and empties cells in random order, while its solution stays unique.

    Args:
        side: 4, 6 or 9.
        empty: Number of cells to empty.
        generator: The random generator.

    Returns:
        The puzzle and its solution; ``None`` if that many cells could not be emptied.
    """
    solution = next(solutions(np.zeros((side, side), dtype=np.int64), generator))
    grid, left = solution.copy(), empty
    for position in generator.permutation(side * side):
        if left == 0:
            break
        cell = divmod(int(position), side)
        digit, grid[cell] = grid[cell], 0
        if is_unique(grid):
            left -= 1
        else:
            grid[cell] = digit
    return (grid, solution) if left == 0 else None


def is_solution(solution: Grid, grid: Grid) -> bool:
    """Whether a full grid has each digit once in each unit, and agrees with the given digits.

    Args:
        solution: Digits, of shape ``[side, side]``.
        grid: The given digits from 1, and 0 for empty cells, of the same shape.

    Example:
        >>> solution = np.array([[1, 2, 3, 4], [3, 4, 1, 2], [2, 1, 4, 3], [4, 3, 2, 1]])
        >>> is_solution(solution, solution * np.eye(4, dtype=np.int64)), is_solution(solution, solution.T)
        (True, False)
    """
    agrees = bool(((grid == 0) | (grid == solution)).all())
    return agrees and bool(solution.all()) and next(solutions(solution), None) is not None
