"""Takes steps of a solver without its loop."""

from collections.abc import Callable

import torch
from torch import Tensor

from rbp_lightning import FixedPointSolver


def iterates(solver: FixedPointSolver, update: Callable[[Tensor], Tensor], start: Tensor, count: int) -> list[Tensor]:
    """The first iterates of a solver, beginning with the initial state.

    Args:
        solver: The solver.
        update: The map F, which acts on each sample.
        start: The initial state, ``[batch, size]``.
        count: Number of steps.
    """
    memory, found = solver.init([start], 1), [start]
    with torch.no_grad():
        for _ in range(count):
            vector, memory = solver.step([found[-1]], [update(found[-1])], memory)
            found.append(vector[0])
    return found
