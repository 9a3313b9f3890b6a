import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodules import Mazes
from datamodules.maze_generation import open_walls, perfect_mazes
from datamodules.puzzles import IGNORED
from rbp_lightning import UserError

seeds = st.integers(0, 2**31)


def neighbours(free: np.ndarray, position: tuple[int, int]) -> list[tuple[int, int]]:
    row, column = position
    around = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [one for one in around if free[one]]


def ways(free: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> list[set[tuple[int, int]]]:
    """All shortest ways, found one step after another."""
    paths, seen = [[start]], {start}
    while paths:
        if any(path[-1] == end for path in paths):
            return [set(path) for path in paths if path[-1] == end]
        paths = [[*path, one] for path in paths for one in neighbours(free, path[-1]) if one not in seen]
        seen |= {path[-1] for path in paths}
    return []


def reached(free: np.ndarray) -> set[tuple[int, int]]:
    found, todo = {(1, 1)}, [(1, 1)]
    while todo:
        new = [one for one in neighbours(free, todo.pop()) if one not in found]
        found |= set(new)
        todo += new
    return found


@settings(max_examples=25, deadline=None)
@given(size=st.integers(2, 8), count=st.integers(1, 4), seed=seeds)
def test_perfect_mazes_reach_every_cell_without_a_loop(size, count, seed) -> None:
    for free in perfect_mazes(size, count, np.random.default_rng(seed)):
        assert free.shape == (2 * size + 1, 2 * size + 1)
        assert free[1::2, 1::2].all()
        assert not free[::2, ::2].any()
        assert not free[[0, -1]].any()
        assert not free[:, [0, -1]].any()
        # Connected, with one opening less than it has cells: a tree.
        assert len(reached(free)) == free.sum() == 2 * size * size - 1


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), seed=seeds)
def test_opened_walls_are_a_share_of_those_between_cells(share, seed) -> None:
    generator = np.random.default_rng(seed)
    free = perfect_mazes(6, 20, generator)
    opened = open_walls(free, share, generator)
    assert (opened >= free).all()
    assert not opened[:, ::2, ::2].any()
    assert not opened[:, [0, -1]].any()
    assert not opened[:, :, [0, -1]].any()
    closed = 20 * (2 * 6 * 5 - 35)
    assert abs((opened ^ free).sum() - share * closed) <= 6 * (closed * share * (1 - share)) ** 0.5 + 1


@pytest.mark.parametrize("loops", [0.0, 0.3])
@pytest.mark.parametrize("cells", [2, 5, 9])
def test_every_maze_has_one_shortest_way_and_it_is_the_target(cells, loops) -> None:
    few = {"num_train": 20, "num_val": 5, "num_test": 5}
    data = Mazes(cells=cells, val_cells=[cells], test_cells=[cells], loops=loops, **few)
    data.setup("fit")
    for sizes in data.splits.values():
        for inputs, targets in zip(sizes[cells]["inputs"], sizes[cells]["targets"], strict=True):
            free, start, end = inputs.bool().numpy()
            (start,), (end,) = (list(zip(*one.nonzero(), strict=True)) for one in (start, end))
            (way,) = ways(free, start, end)
            assert start != end
            assert way == set(zip(*(targets == 1).numpy().nonzero(), strict=True))
            assert torch.equal(targets != IGNORED, inputs[0].bool())


def test_a_size_with_too_few_mazes_is_refused() -> None:
    with pytest.raises(UserError, match=r"100 tries brought 48 different mazes of 2 x 2 cells .* ask for 60"):
        Mazes(cells=2, num_train=50, num_val=5, num_test=5).setup("fit")
    with pytest.raises(UserError, match="cells=1 must be a whole number of at least 2"):
        Mazes(cells=1)
