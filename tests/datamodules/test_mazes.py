"""Generated mazes and their shortest paths."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import LambdaCallback

from datamodules import Mazes
from datamodules.maze_generation import open_walls, perfect_mazes
from datamodules.puzzles import IGNORED
from models import ConvolutionalCell, EquilibriumReasoner
from rbp_lightning import UserError
from tests.training import make_trainer

seeds = st.integers(0, 2**31)


def neighbours(free: np.ndarray, position: tuple[int, int]) -> list[tuple[int, int]]:
    row, column = position
    adjacent = [(row - 1, column), (row + 1, column), (row, column - 1), (row, column + 1)]
    return [one for one in adjacent if free[one]]


def shortest_paths(free: np.ndarray, start: tuple[int, int], end: tuple[int, int]) -> list[set[tuple[int, int]]]:
    """All shortest paths, as sets of positions, by breadth-first search."""
    paths, seen = [[start]], {start}
    while paths:
        if any(path[-1] == end for path in paths):
            return [set(path) for path in paths if path[-1] == end]
        paths = [[*path, one] for path in paths for one in neighbours(free, path[-1]) if one not in seen]
        seen |= {path[-1] for path in paths}
    return []


def reachable(free: np.ndarray) -> set[tuple[int, int]]:
    found, todo = {(1, 1)}, [(1, 1)]
    while todo:
        new = [one for one in neighbours(free, todo.pop()) if one not in found]
        found |= set(new)
        todo += new
    return found


@settings(max_examples=25, deadline=None)
@given(size=st.integers(2, 8), count=st.integers(1, 4), seed=seeds)
def test_perfect_mazes_are_spanning_trees(size, count, seed) -> None:
    for free in perfect_mazes(size, count, np.random.default_rng(seed)):
        assert free.shape == (2 * size + 1, 2 * size + 1)
        assert free[1::2, 1::2].all()
        assert not free[::2, ::2].any()
        assert not free[[0, -1]].any()
        assert not free[:, [0, -1]].any()
        # Connected, with one opening less than cells: a tree.
        assert len(reachable(free)) == free.sum() == 2 * size * size - 1


@settings(max_examples=25, deadline=None)
@given(share=st.floats(0, 1), seed=seeds)
def test_open_walls_opens_the_given_share_of_inner_walls(share, seed) -> None:
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
def test_the_target_of_a_maze_is_its_only_shortest_path(cells, loops) -> None:
    few = {"num_train": 20, "num_val": 5, "num_test": 5}
    data = Mazes(cells=cells, val_cells=[cells], test_cells=[cells], loops=loops, **few)
    data.setup("fit")
    for sizes in data.splits.values():
        for inputs, targets in zip(sizes[cells]["inputs"], sizes[cells]["targets"], strict=True):
            free, start, end = inputs.bool().numpy()
            (start,), (end,) = (list(zip(*one.nonzero(), strict=True)) for one in (start, end))
            (path,) = shortest_paths(free, start, end)
            assert start != end
            assert path == set(zip(*(targets == 1).numpy().nonzero(), strict=True))
            assert torch.equal(targets != IGNORED, inputs[0].bool())


def test_a_size_with_too_few_mazes_is_refused() -> None:
    with pytest.raises(UserError, match=r"48 different mazes.* ask for 60"):
        Mazes(cells=2, num_train=50, num_val=5, num_test=5).setup("fit")
    with pytest.raises(UserError, match=r"cells=1 .*at least 2"):
        Mazes(cells=1)


def test_starts_in_dead_ends_are_drawn_uniformly() -> None:
    data = Mazes(cells=3, val_cells=[3], test_cells=[3], dead_end_start=True, num_train=1000, num_val=1, num_test=1)
    data.setup("fit")
    inputs = data.splits["train"][3]["inputs"].bool().numpy()
    shares = []
    for free, start, end in inputs:
        ends = [(row, column) for row in (1, 3, 5) for column in (1, 3, 5) if len(neighbours(free, (row, column))) == 1]
        (position,) = zip(*start.nonzero(), strict=True)
        assert position in ends
        assert not end[position]
        shares.append(ends.index(position) / (len(ends) - 1))
    assert np.mean(shares) == pytest.approx(0.5, abs=0.06)


def test_loops_without_a_dead_end_have_no_such_start() -> None:
    with pytest.raises(UserError, match="0 different mazes"):
        Mazes(cells=2, loops=1.0, dead_end_start=True, num_train=1, num_val=1, num_test=1).setup("fit")


def sizes_in_training(max_epochs: int, **arguments) -> list[int]:
    seen = []
    see = LambdaCallback(on_train_batch_start=lambda trainer, module, batch, index: seen.append(int(batch["size"][0])))
    few = {"num_train": 4, "num_val": 1, "num_test": 1}
    trainer = make_trainer(see, limit_val_batches=0, max_epochs=max_epochs, **arguments)
    trainer.fit(EquilibriumReasoner(ConvolutionalCell(3, 2, num_hidden=2, dims=2)), Mazes(cells=[2, 4, 3], **few))
    return seen


@pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # the network is not trained to converge
def test_training_alternates_between_sizes() -> None:
    assert sizes_in_training(4, reload_dataloaders_every_n_epochs=1) == [2, 2, 4, 3]


def test_several_training_sizes_need_reloaded_dataloaders() -> None:
    with pytest.raises(UserError, match=r"\[2, 4, 3\].*reload_dataloaders_every_n_epochs"):
        sizes_in_training(4)


def test_evaluation_sizes_follow_from_the_last_training_size() -> None:
    data = Mazes(cells=[2, 3])
    assert data.sizes == {"train": (2, 3), "val": (3, 6), "test": (3, 6, 12)}
