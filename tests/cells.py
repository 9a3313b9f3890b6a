"""Contractive updates for tests, the exact gradients of their fixed points, and estimators of them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map, tree_unflatten

from models.hopfield_cell import HopfieldCell
from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ExactAdjoint,
    FixedPointSolver,
    GradientEstimator,
    NeumannRBP,
)


@dataclass
class Cell:
    """A contractive update in float64, its initial state and the tensors to differentiate."""

    update: Callable[[Any], Any]
    start: Any
    tensors: list[Tensor]  # tensors that the update uses and that need a gradient
    batch_dims: int


def _with_spectral_norm(weight: Tensor, norm: float) -> Tensor:
    return (weight * norm / torch.linalg.matrix_norm(weight, 2)).requires_grad_()


def tanh_cell(seed: int, norm: float = 0.8, batch: int = 3, size: int = 4) -> Cell:
    generator = torch.Generator().manual_seed(seed)
    weight = _with_spectral_norm(torch.randn(size, size, generator=generator, dtype=torch.float64), norm)
    drive = torch.randn(batch, size, generator=generator, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(batch, size, dtype=torch.float64)
    return Cell(lambda h: torch.tanh(h @ weight + drive), start, [weight, drive], 1)


def gru_cell(seed: int, norm: float = 0.8, batch: int = 3, size: int = 4) -> Cell:
    torch.manual_seed(seed)
    gru = torch.nn.GRUCell(size, size).double()
    with torch.no_grad():
        gru.weight_hh.mul_(0.3 * norm / torch.linalg.matrix_norm(gru.weight_hh, 2))
    inputs = torch.randn(batch, size, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(batch, size, dtype=torch.float64)
    return Cell(lambda h: gru(inputs, h), start, [inputs, *gru.parameters()], 1)


def hopfield_cell(seed: int, norm: float = 0.8, batch: int = 3, size: int = 2) -> Cell:
    torch.manual_seed(seed)
    hopfield = HopfieldCell(size, 3, decay=0.7, gain=1.5, weight_scale=1.0).double()
    with torch.no_grad():
        # The slope of the sigmoid is at most gain / 4.
        scale = norm * 0.7 * 4 / 1.5 / torch.linalg.matrix_norm(hopfield.weight, 2)
        hopfield.parametrizations.weight.original.mul_(scale)
    images = torch.rand(batch, size, dtype=torch.float64, requires_grad=True)
    start = torch.zeros(batch, hopfield.num_free, dtype=torch.float64)
    return Cell(lambda h: hopfield.clamp(images)(h), start, [images, *hopfield.parameters()], 1)


def pytree_cell(seed: int, norm: float = 0.8, batch: int = 3, size: int = 2) -> Cell:
    """Two coupled leaves of different shapes, and a third leaf that the others do not depend on."""
    generator = torch.Generator().manual_seed(seed)
    weight = _with_spectral_norm(torch.randn(3 * size, 3 * size, generator=generator, dtype=torch.float64), norm)
    drive = torch.randn(batch, 3 * size, generator=generator, dtype=torch.float64, requires_grad=True)

    def update(state: dict[str, Any]) -> dict[str, Any]:
        joined = torch.cat([state["a"].flatten(1), state["b"][0]], dim=1)
        following = torch.tanh(joined @ weight + drive)
        return {
            "a": following[:, : 2 * size].reshape(batch, 2, size),
            "b": (following[:, 2 * size :], 0.5 * state["b"][1] + following[:, 0]),
        }

    zeros = torch.zeros(batch, 3 * size, dtype=torch.float64)
    start = {"a": zeros[:, : 2 * size].reshape(batch, 2, size), "b": (zeros[:, 2 * size :], zeros[:, 0])}
    return Cell(update, start, [weight, drive], 1)


MAKERS = [tanh_cell, gru_cell, hopfield_cell, pytree_cell]


@st.composite
def cells(draw: st.DrawFn) -> Cell:
    maker = draw(st.sampled_from(MAKERS))
    cell = maker(draw(st.integers(0, 2**31)), norm=draw(st.floats(0.1, 0.9)), batch=draw(st.integers(1, 3)))
    if draw(st.booleans()):
        cell.batch_dims = 0
    return cell


def estimators(solver: FixedPointSolver, steps: int = 20, tol: float = 1e-4) -> list[GradientEstimator]:
    """Seven estimators, by tapes, series, iterations and matrices, with at most ``steps`` steps or to a tolerance."""
    return [
        BPTT(solver),
        TBPTT(steps, solver),
        RBP(steps, tol, solver=solver),
        NeumannRBP(steps, solver),
        CGRBP(steps, tol, solver=solver),
        AdaptiveNeumann(tol, solver=solver),
        ExactAdjoint(solver=solver),
    ]


def loss_of(state: Any) -> Tensor:
    """A loss whose gradient is different for every entry."""
    return sum(
        (leaf * torch.linspace(0.5, 2.0, leaf.numel(), dtype=leaf.dtype).reshape(leaf.shape)).sum() + (leaf**2).sum()
        for leaf in tree_flatten(state)[0]
    )


def settle(cell: Cell, steps: int = 2000) -> Any:
    """Iterates until the state no longer changes, for at most ``steps`` steps; returns the last iterate."""
    state = cell.start
    with torch.no_grad():
        for step in range(steps):
            previous, state = state, cell.update(state)
            if step % 50 == 49 and all(map(torch.equal, tree_leaves(state), tree_leaves(previous))):
                break
    return state


@dataclass
class Dense:
    """The linearised problem as dense tensors: J (one row per output), g, z with (I - J^T) z = g, and the gradients."""

    jacobian: Tensor
    gradient: Tensor
    adjoint: Tensor
    gradients: list[Tensor]  # of the cell's tensors


def dense(cell: Cell) -> Dense:
    """Exact gradients, from the dense solution of the adjoint equation at the fixed point."""
    state = tree_map(lambda leaf: leaf.detach().requires_grad_(), settle(cell))
    leaves, structure = tree_flatten(state)

    def flat(vector: Tensor) -> Tensor:
        parts = vector.split([leaf.numel() for leaf in leaves])
        pieces = [part.reshape(leaf.shape) for part, leaf in zip(parts, leaves, strict=True)]
        return torch.cat([leaf.reshape(-1) for leaf in tree_flatten(cell.update(tree_unflatten(pieces, structure)))[0]])

    point = torch.cat([leaf.detach().reshape(-1) for leaf in leaves])
    jacobian = torch.autograd.functional.jacobian(flat, point)
    gradient = torch.cat([leaf.reshape(-1) for leaf in torch.autograd.grad(loss_of(state), leaves)])
    adjoint = torch.linalg.solve(torch.eye(len(point), dtype=point.dtype) - jacobian.T, gradient)
    gradients = torch.autograd.grad(flat(point), cell.tensors, adjoint)
    return Dense(jacobian, gradient, adjoint, list(gradients))


def relative_error(found: list[Tensor], exact: list[Tensor]) -> float:
    """Norm of the difference relative to the norm of the exact gradients, over all tensors together."""
    difference = torch.cat([(one - other).reshape(-1) for one, other in zip(found, exact, strict=True)])
    return float(difference.norm() / torch.cat([other.reshape(-1) for other in exact]).norm())
