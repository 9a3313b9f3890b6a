"""Limits of a state under many iterations, and their dependence on the initial state."""

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from experiments.one_step.tasks import Cell
from rbp_lightning import JacobianOperator
from rbp_lightning.linear import spectral_radius
from rbp_lightning.pytree import State, change_and_size, flatten_state
from rbp_lightning.solvers import Update

TOL = 1e-4
"""Relative change within which a state counts as unchanged."""

FALLING = 0.1
"""Factor by which twice the steps must reduce the residual of a state that still converges."""

KINDS = ["fixed", "cycle", "falling", "wandering"]
"""A fixed point, a 2-cycle, a residual that still falls, and anything else."""


@dataclass(frozen=True)
class Limits:
    """The limits of the samples of a batch.

    Attributes:
        state: The state after the given number of steps.
        residual: Relative change in the next step, per sample.
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
        """The share of the samples of this kind."""
        return float((self.kinds == KINDS.index(kind)).float().mean())


def change(one: State, other: State) -> Tensor:
    """Distance between two states relative to the norm of the second, per sample."""
    distance, size = change_and_size(flatten_state(one, 1)[0], flatten_state(other, 1)[0], 1)
    return torch.where(distance == 0, 0.0, distance / size)


@torch.no_grad()
def iterate(update: Update, state: State, steps: int) -> State:
    """Applies an update repeatedly; stops early when no sample changes beyond rounding.

    Args:
        update: The map F.
        state: The initial state, with samples in the first dimension.
        steps: Number of steps.
    """
    for step in range(steps):
        previous, state = state, update(state)
        if step % 20 == 19 and bool((change(previous, state) <= TOL / 100).all()):
            break
    return state


@torch.no_grad()
def limits_of(update: Update, state: State, budget: int) -> Limits:
    """Iterates for a number of steps, then for as many again, and classifies the limits.

    Args:
        update: The map F.
        state: The initial state, with samples in the first dimension.
        budget: Number of steps.

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
def path_independence(cell: Cell, inputs: Tensor, budget: int, seed: int = 0) -> tuple[float, float]:
    """Compares the limits from two random initial states (Anil et al., NeurIPS 2022).

    Args:
        cell: The cell.
        inputs: The puzzles or images.
        budget: Number of steps.
        seed: Seed of the initial states, which are normal random numbers.

    Returns:
        The share of inputs with the same answer from both, and the median relative distance of the states.
    """
    update, zeros = cell.start(inputs)
    generator = torch.Generator().manual_seed(seed)
    ends = []
    for _ in range(2):
        start = tree_map(lambda leaf: torch.randn(leaf.shape, generator=generator).to(leaf), zeros)
        ends.append(iterate(update, start, budget))
    answers = [cell.scores(end).argmax(1) for end in ends]
    return share_of_examples(answers[0] == answers[1]), float(change(*ends).median())


def share_of_examples(right: Tensor) -> float:
    """The share of examples that are right at every position.

    Args:
        right: Of shape ``[batch, *positions]``; a class of a whole image has no positions.

    Example:
        >>> from experiments.one_step.limits import share_of_examples
        >>> share_of_examples(torch.tensor([[True, False], [True, True]])), share_of_examples(torch.tensor([True]))
        (0.5, 1.0)
    """
    return float(right.reshape(len(right), -1).all(1).float().mean())
