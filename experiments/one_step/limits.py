"""What a state comes to when it is iterated for long, and whether that depends on where it began."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from models import ReasoningCell
from rbp_lightning import JacobianOperator
from rbp_lightning.linear import spectral_radius
from rbp_lightning.pytree import State, change_and_size, flatten_state
from rbp_lightning.solvers import Update

TOL = 1e-4
"""Relative change within which a state has come back to where it was."""

FALLING = 0.1
"""Factor by which the residual of a state that still converges falls in as many steps again."""

KINDS = ["fixed", "cycle", "falling", "wandering"]
"""Fixed point, 2-cycle, a residual that still falls, and none of these."""


@dataclass(frozen=True)
class Limits:
    """Where the samples of a batch end.

    Attributes:
        state: The state after the budget of steps.
        residual: Relative change by a step then, per sample.
        residual_twice: The same after twice the steps.
        kinds: Index into ``KINDS`` after twice the steps, per sample.
        radius: Spectral radius of J after twice the steps, per sample.
    """

    state: State
    residual: Tensor
    residual_twice: Tensor
    kinds: Tensor
    radius: Tensor

    def share(self, kind: str) -> float:
        """Share of the samples that end so."""
        return float((self.kinds == KINDS.index(kind)).float().mean())


def change(one: State, other: State) -> Tensor:
    """Distance of two states relative to the second one's norm, per sample."""
    distance, size = change_and_size(flatten_state(one, 1)[0], flatten_state(other, 1)[0], 1)
    return torch.where(distance == 0, 0.0, distance / size)


@torch.no_grad()
def iterate(update: Update, state: State, steps: int) -> State:
    """Applies an update, fewer times where every sample has settled at rounding.

    Args:
        update: The map F.
        state: Where to begin, with samples in the first dimension.
        steps: How often.
    """
    for step in range(steps):
        previous, state = state, update(state)
        if step % 20 == 19 and bool((change(previous, state) <= TOL / 100).all()):
            break
    return state


@torch.no_grad()
def limits_of(update: Update, state: State, budget: int) -> Limits:
    """Iterates for a budget of steps, then for as many again, and says what the state has come to.

    Args:
        update: The map F.
        state: Where to begin, with samples in the first dimension.
        budget: How many steps.

    Example:
        >>> turned = limits_of(lambda h: 1 / h, torch.tensor([[2.0], [1.0]]), budget=10)
        >>> [KINDS[kind] for kind in turned.kinds]
        ['cycle', 'fixed']
    """
    reached = iterate(update, state, budget)
    residual = change(reached, update(reached))
    later = iterate(update, reached, budget)
    following = update(later)
    residual_twice, in_two = change(later, following), change(later, update(following))
    kinds = torch.full_like(residual, KINDS.index("wandering"), dtype=torch.int64)
    kinds[residual_twice <= FALLING * residual] = KINDS.index("falling")
    kinds[in_two <= TOL] = KINDS.index("cycle")
    kinds[residual_twice <= TOL] = KINDS.index("fixed")
    with torch.enable_grad():
        radius = spectral_radius(JacobianOperator.at(update, later, batch_dims=1), 20, 20).value
    return Limits(reached, residual, residual_twice, kinds, radius)


@torch.no_grad()
def path_independence(cell: ReasoningCell, inputs: Tensor, budget: int, seed: int = 0) -> tuple[float, float]:
    """Compares what two random starts come to (Anil et al., NeurIPS 2022).

    Args:
        cell: The cell.
        inputs: Puzzles.
        budget: How many steps.
        seed: Seed of the starts, normal random numbers.

    Returns:
        The share of the puzzles with the same answer from both, and the median relative distance of the states.
    """
    update, zeros = cell.start(inputs)
    generator = torch.Generator().manual_seed(seed)
    ends = []
    for _ in range(2):
        start = tree_map(lambda leaf: torch.randn(leaf.shape, generator=generator).to(leaf), zeros)
        ends.append(iterate(update, start, budget))
    answers = [cell.scores(end).argmax(1).flatten(1) for end in ends]
    alike = (answers[0] == answers[1]).all(1).float().mean()
    return float(alike), float(change(*ends).median())
