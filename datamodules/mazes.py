"""Mazes with the shortest path between two cells."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from datamodules.maze_generation import dead_ends, open_walls, perfect_mazes, random_cells, shortest_paths
from datamodules.puzzles import IGNORED, Puzzles, check_sizes
from rbp_lightning.errors import UserError, check_entries, check_instance, check_number

MAX_CELLS = 200
"""The most cells per side."""

TRIES = 100
"""The most attempts to replace mazes that are duplicates or have several shortest paths."""


class Mazes(Puzzles):
    """Square mazes with a start, an end and the unique shortest path between them.

    The task of Schwarzschild et al. (NeurIPS 2021).

    A maze of n x n cells has (2 n + 1) x (2 n + 1) positions, including the walls and openings between cells.
    ``inputs`` are 0.0 or 1.0, of shape ``[batch, 3, 2 n + 1, 2 n + 1]``: free positions, start and end. ``targets`` are
    1 on the path, including start and end, 0 on other free positions and ``IGNORED`` in walls, of shape
    ``[batch, 2 n + 1, 2 n + 1]``; ``size`` is n. No maze occurs twice with the same start and end.

    Mazes are not kept on disk, since drawing those of ``configs/mazes.yaml`` takes about two seconds of one core.

    Args:
        cells: The size n in training; several sizes are trained on one after the other.
        val_cells: Sizes in validation; ``None`` for the last training size and twice it.
        test_cells: Sizes in test and prediction; ``None`` for the last training size, twice and four times it.
        loops: Share of the walls that is opened, 0 to 1; with 0 there is one path between any two cells.
        dead_end_start: Whether the start is a dead end; otherwise it is any cell.
        num_train: Number of training mazes of each size.
        num_val: Number of validation mazes of each size.
        num_test: Number of test mazes of each size.
        batch_size: Batch size per process.
        data_seed: Seed of all mazes and of their order in training.

    Raises:
        UserError: If an argument is out of its range, or there are too few distinct mazes of a size.

    Example:
        >>> data = Mazes(cells=2, num_train=3, num_val=1, num_test=1)
        >>> data.setup("fit")
        >>> next(iter(data.train_dataloader()))["inputs"].shape
        torch.Size([3, 3, 5, 5])
    """

    def __init__(
        self,
        cells: int | Sequence[int] = 5,
        val_cells: Sequence[int] | None = None,
        test_cells: Sequence[int] | None = None,
        loops: float = 0.0,
        dead_end_start: bool = False,
        num_train: int = 6000,
        num_val: int = 64,
        num_test: int = 64,
        batch_size: int = 32,
        data_seed: int = 0,
    ) -> None:
        train = check_sizes(self, "cells", [cells] if isinstance(cells, int) else cells, 2, MAX_CELLS)
        val = [train[-1], 2 * train[-1]] if val_cells is None else val_cells
        test = [train[-1], 2 * train[-1], 4 * train[-1]] if test_cells is None else test_cells
        check_sizes(self, "val_cells", val, 2, MAX_CELLS)
        check_sizes(self, "test_cells", test, 2, MAX_CELLS)
        self.loops = check_number(self, "loops", loops, 0.0, 1.0)
        self.dead_end_start = check_instance(self, "dead_end_start", dead_end_start, bool, "true or false")
        super().__init__(train, val, test, num_train, num_val, num_test, batch_size, data_seed)
        self.save_hyperparameters()

    def draw(self, size: int, count: int, generator: np.random.Generator) -> tuple[Tensor, Tensor]:
        """Draws distinct mazes."""
        side = 2 * size + 1
        check_entries(self, 3 * side * side * count, cells=size, count=count)
        found: dict[bytes, tuple[Tensor, Tensor]] = {}
        for _ in range(TRIES):
            missing = count - len(found)
            free = open_walls(perfect_mazes(size, missing, generator), self.loops, generator)
            mazes, others = np.arange(missing), np.ones((missing, size, size), dtype=bool)
            starts = dead_ends(free) if self.dead_end_start else others.copy()
            start = random_cells(starts, generator)
            others[mazes, start[:, 0], start[:, 1]] = False
            end = random_cells(others, generator)
            path, only = shortest_paths(free, start, end)
            inputs = np.stack([free, np.zeros_like(free), np.zeros_like(free)], axis=1)
            for channel, cell in ((1, start), (2, end)):
                inputs[mazes, channel, 2 * cell[:, 0] + 1, 2 * cell[:, 1] + 1] = True
            targets = np.where(free, path, IGNORED)
            for index in np.flatnonzero(only & starts.any((1, 2))):
                content = np.packbits(inputs[index]).tobytes()
                found[content] = torch.from_numpy(inputs[index]).float(), torch.from_numpy(targets[index])
            if len(found) == count:
                drawn, answers = zip(*found.values(), strict=True)
                return torch.stack(drawn), torch.stack(answers)
        raise UserError(
            f"Mazes: {TRIES} tries found {len(found)} different mazes of {size} x {size} cells with one shortest path, "
            f"but num_train, num_val and num_test ask for {count}: lower these or loops, or use larger mazes."
        )
