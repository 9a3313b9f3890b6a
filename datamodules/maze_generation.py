"""Generation of mazes and their shortest paths, many at a time."""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

Grids = NDArray[np.bool_]

STEPS = np.array([[-1, 0], [1, 0], [0, -1], [0, 1]])
"""Steps from a cell to its neighbours, in rows and columns of cells."""


def perfect_mazes(size: int, count: int, generator: np.random.Generator) -> Grids:
    """Generates perfect mazes, with exactly one path between any two cells, by depth-first search.

    All mazes are carved at once: at each step, every search moves on to a random unvisited neighbour or, without one,
    back.

    Args:
        size: Number of cells per side.
        count: Number of mazes.
        generator: The random generator.

    Returns:
        Whether each position is free, of shape ``[count, 2 size + 1, 2 size + 1]``. Cells have odd rows and columns;
        walls and openings are between them.

    Example:
        >>> perfect_mazes(2, 1, np.random.default_rng(0))[0].sum()  # four cells and three openings
        np.int64(7)
    """
    mazes, side = np.arange(count), 2 * size + 1
    free = np.zeros((count, side, side), dtype=bool)
    # A border of visited cells keeps the search inside.
    visited = np.pad(np.zeros((count, size, size), dtype=bool), ((0, 0), (1, 1), (1, 1)), constant_values=True)
    path = np.zeros((count, size * size, 2), dtype=np.int64)
    path[:, 0] = generator.integers(size, size=(count, 2))
    length = np.ones(count, dtype=np.int64)  # 0 once the search is back at its start
    row, column = path[:, 0].T
    visited[mazes, row + 1, column + 1] = True
    free[mazes, 2 * row + 1, 2 * column + 1] = True
    while len(mazes):
        cell = path[mazes, length[mazes] - 1]
        neighbours = cell[:, None] + STEPS
        new = ~visited[mazes[:, None], neighbours[..., 0] + 1, neighbours[..., 1] + 1]
        chosen = np.where(new, generator.random(new.shape), -1).argmax(1)
        moves_on = new.any(1)
        on, step = mazes[moves_on], STEPS[chosen[moves_on]]
        old, cell = cell[moves_on], cell[moves_on] + step
        visited[on, cell[:, 0] + 1, cell[:, 1] + 1] = True
        free[on, 2 * cell[:, 0] + 1, 2 * cell[:, 1] + 1] = True
        free[on, old[:, 0] + cell[:, 0] + 1, old[:, 1] + cell[:, 1] + 1] = True
        path[on, length[on]] = cell
        length[mazes] += np.where(moves_on, 1, -1)
        mazes = mazes[length[mazes] > 0]
    return free


def open_walls(free: Grids, share: float, generator: np.random.Generator) -> Grids:
    """Opens some of the walls between neighbouring cells, which creates loops.

    Args:
        free: Mazes, of shape ``[count, side, side]``.
        share: Share of the closed walls to open, 0 to 1.
        generator: The random generator.

    Returns:
        The mazes with loops.
    """
    between = np.zeros(free.shape[1:], dtype=bool)
    between[1:-1:2, 2:-1:2] = between[2:-1:2, 1:-1:2] = True
    return free | (between & (generator.random(free.shape) < share))


def dead_ends(free: Grids) -> Grids:
    """Finds dead ends, the cells with a single opening.

    Args:
        free: Mazes of n x n cells, of shape ``[count, 2 n + 1, 2 n + 1]``.

    Returns:
        Whether each cell is a dead end, of shape ``[count, n, n]``.

    Example:
        >>> int(dead_ends(perfect_mazes(2, 1, np.random.default_rng(0))).sum())  # four cells in a row
        2
    """
    openings = (free[:, :-1:2, 1::2], free[:, 2::2, 1::2], free[:, 1::2, :-1:2], free[:, 1::2, 2::2])
    found: Grids = np.sum(openings, axis=0) == 1
    return found


def random_cells(allowed: Grids, generator: np.random.Generator) -> NDArray[np.int64]:
    """Draws one of the allowed cells of each maze uniformly; any cell if none is allowed.

    Args:
        allowed: Whether each cell is allowed, of shape ``[count, n, n]``.
        generator: The random generator.

    Returns:
        Row and column of each drawn cell, of shape ``[count, 2]``.
    """
    flat = allowed.reshape(len(allowed), -1)
    drawn = np.where(flat, generator.random(flat.shape), -1).argmax(1)
    return np.stack(np.unravel_index(drawn, allowed.shape[1:]), axis=1)


def distances(free: Grids, cells: NDArray[np.int64]) -> NDArray[np.float64]:
    """Computes the distance of every free position from a given cell, for each maze.

    Args:
        free: Mazes, of shape ``[count, side, side]``.
        cells: Row and column of the cell of each maze, of shape ``[count, 2]``.

    Returns:
        The distances in steps, of the shape of ``free``; infinite for unreachable positions.
    """
    numbers = np.arange(free.size).reshape(free.shape)
    down, right = free[:, :-1] & free[:, 1:], free[:, :, :-1] & free[:, :, 1:]
    ends = (
        np.concatenate([numbers[:, :-1][down], numbers[:, :, :-1][right]]),
        np.concatenate([numbers[:, 1:][down], numbers[:, :, 1:][right]]),
    )
    # A single graph, in which the mazes are not connected.
    graph = csr_array((np.ones(len(ends[0])), ends), shape=(free.size, free.size))
    sources = numbers[np.arange(len(free)), 2 * cells[:, 0] + 1, 2 * cells[:, 1] + 1]
    found: NDArray[np.float64] = dijkstra(graph, directed=False, indices=sources, unweighted=True, min_only=True)
    return found.reshape(free.shape)


def shortest_paths(free: Grids, starts: NDArray[np.int64], ends: NDArray[np.int64]) -> tuple[Grids, NDArray[np.bool_]]:
    """Finds the shortest paths between two cells of each maze.

    Args:
        free: Mazes, of shape ``[count, side, side]``.
        starts: Row and column of the first cell of each maze, of shape ``[count, 2]``.
        ends: The same for the second cell.

    Returns:
        Whether each position is on a shortest path, both cells included, of the shape of ``free``; and whether each
        maze has a unique shortest path.
    """
    from_start, from_end = distances(free, starts), distances(free, ends)
    mazes = np.arange(len(free))
    length = from_start[mazes, 2 * ends[:, 0] + 1, 2 * ends[:, 1] + 1]
    path = free & (from_start + from_end == length[:, None, None])
    return path, path.sum((1, 2)) == length + 1
