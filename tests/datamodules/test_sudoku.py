"""Generated Sudoku puzzles and their solver."""

import itertools

import numpy as np
import pytest
import torch
from scipy.optimize import Bounds, LinearConstraint, milp

from datamodules import Sudoku
from datamodules.puzzles import IGNORED
from datamodules.sudoku_generation import BOXES, is_unique, solutions
from rbp_lightning import UserError


def is_solved(grid: np.ndarray) -> bool:
    side = len(grid)
    height, width = BOXES[side]
    boxes = [grid[row : row + height, column : column + width].ravel() for row, column in corners(side, height, width)]
    return all(sorted(unit) == list(range(1, side + 1)) for unit in [*grid, *grid.T, *boxes])


def corners(side: int, height: int, width: int) -> list[tuple[int, int]]:
    return list(itertools.product(range(0, side, height), range(0, side, width)))


def test_all_288_grids_of_side_four_are_found() -> None:
    found = list(solutions(np.zeros((4, 4), dtype=int)))
    assert len({grid.tobytes() for grid in found}) == len(found) == 288  # the known number
    assert all(map(is_solved, found))


def test_is_unique_agrees_with_brute_force() -> None:
    grids = list(solutions(np.zeros((4, 4), dtype=int)))
    generator = np.random.default_rng(0)
    results = []
    for _ in range(40):
        shown = generator.random((4, 4)) < 0.35
        puzzle = np.where(shown, grids[generator.integers(288)], 0)
        matching = [grid for grid in grids if (grid[shown] == puzzle[shown]).all()]
        assert is_unique(puzzle) == (len(matching) == 1)
        results.append(is_unique(puzzle))
    assert len(set(results)) == 2
    assert not is_unique(np.array([[1, 1, 0, 0]] + [[0] * 4] * 3))  # no solution at all


@pytest.mark.parametrize(("side", "empty"), [(4, 8), (6, 18), (9, 40)])
def test_the_target_of_a_puzzle_is_its_only_solution(side, empty) -> None:
    data = Sudoku(side=side, empty=empty, num_train=4, num_val=2, num_test=2)
    data.setup("fit")
    for sizes in data.splits.values():
        for inputs, targets in zip(sizes[empty]["inputs"], sizes[empty]["targets"], strict=True):
            puzzle = (inputs * torch.arange(1, side + 1)[:, None, None]).sum(0).long()
            assert int((puzzle == 0).sum()) == empty
            assert torch.equal(puzzle == 0, targets != IGNORED)
            answer = torch.where(puzzle == 0, targets + 1, puzzle).numpy()
            assert is_solved(answer)
            assert is_unique(puzzle.numpy())


def solution_by_integer_programming(puzzle: np.ndarray, other_than: np.ndarray | None = None) -> np.ndarray | None:
    """A solution that differs from another one, by a solver that has nothing in common with the project's search.

    Of the variables, of shape ``[side, side, side]``, one is 1 in each cell: that of its digit.
    """
    side = len(puzzle)
    height, width = BOXES[side]
    variables = np.arange(side**3).reshape(side, side, side)
    rows, columns, boxes = (
        variables,
        variables.transpose(1, 0, 2),
        [
            variables[row : row + height, column : column + width].reshape(-1, side)
            for row, column in corners(side, height, width)
        ],
    )
    once = [
        *variables.reshape(-1, side),
        *(unit[:, digit] for unit in [*rows, *columns, *boxes] for digit in range(side)),
    ]
    each_once = np.zeros((len(once), side**3))
    np.put_along_axis(each_once, np.array(once), 1, axis=1)
    constraints = [LinearConstraint(each_once, 1, 1)]
    if other_than is not None:
        agreeing = (other_than[..., None] == np.arange(1, side + 1)).ravel()
        constraints.append(LinearConstraint(agreeing[None].astype(float), ub=side**2 - 1))
    shown = (puzzle[..., None] == np.arange(1, side + 1)).ravel()
    found = milp(np.zeros(side**3), integrality=np.ones(side**3), bounds=Bounds(shown, 1), constraints=constraints)
    assert found.status in (0, 2)  # solved or infeasible
    return None if found.x is None else found.x.reshape((*puzzle.shape, side)).argmax(2) + 1


@pytest.mark.parametrize(("side", "empty"), [(6, 18), (9, 40)])
def test_integer_programming_finds_the_same_solution_and_no_other(side, empty) -> None:
    data = Sudoku(side=side, empty=empty, num_train=3, num_val=1, num_test=1)
    data.setup("fit")
    examples = data.splits["train"][empty]
    for inputs, targets in zip(examples["inputs"], examples["targets"], strict=True):
        puzzle = (inputs * torch.arange(1, side + 1)[:, None, None]).sum(0).long().numpy()
        answer = np.where(puzzle == 0, targets + 1, puzzle)
        assert np.array_equal(solution_by_integer_programming(puzzle), answer)
        assert solution_by_integer_programming(puzzle, other_than=answer) is None
        emptier = np.where(answer <= 2, 0, puzzle)  # 1 and 2 can be swapped
        other = solution_by_integer_programming(emptier, other_than=answer)
        assert is_solved(other)
        assert not np.array_equal(other, answer)


def test_what_cannot_be_drawn_is_refused() -> None:
    with pytest.raises(UserError, match=r"0 different puzzles.* 15 of them empty"):
        Sudoku(empty=15, num_train=1, num_val=1, num_test=1).setup("fit")
    with pytest.raises(UserError, match=r"side=5 .*4, 6, 9"):
        Sudoku(side=5)
    with pytest.raises(UserError, match=r"empty=16 .*at most 15"):
        Sudoku(empty=16)
