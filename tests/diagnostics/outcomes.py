"""Runs every estimator on a cell and records its result and warnings."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ExactAdjoint,
    FixedPoint,
    GradientEstimator,
    NeumannRBP,
    Picard,
)
from tests.cells import Cell
from tests.training import convergence_warnings


def estimators(solver: Picard) -> list[GradientEstimator]:
    implicit = [RBP(20, solver=solver), NeumannRBP(20, solver), CGRBP(20, solver=solver)]
    return [
        BPTT(solver),
        TBPTT(20, solver),
        *implicit,
        AdaptiveNeumann(1e-3, solver=solver),
        ExactAdjoint(solver=solver),
    ]


EACH_ESTIMATOR = pytest.mark.parametrize(
    "estimator",
    [pytest.param(estimator, id=type(estimator).__name__) for estimator in estimators(Picard(2000, tol=1e-7))],
)
BATCH, SIZE = 3, 8


def rotation(radius: float, seed: int = 0) -> Tensor:
    """A matrix whose eigenvalues are all complex with modulus ``radius``."""
    generator = torch.Generator().manual_seed(seed)
    angles = 0.3 + 2.5 * torch.rand(SIZE // 2, generator=generator, dtype=torch.float64)
    blocks = [torch.tensor([[a.cos(), -a.sin()], [a.sin(), a.cos()]], dtype=torch.float64) for a in angles]
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
    return radius * basis @ torch.block_diag(*blocks) @ basis.T


@dataclass
class Outcome:
    fixed_point: FixedPoint
    gradients: list[Tensor]
    warned: list[str]


def outcome(estimator: GradientEstimator, cell: Cell) -> Outcome:
    found: list[Any] = []

    def run() -> None:
        fixed_point = estimator(cell.update, cell.start, batch_dims=cell.batch_dims)
        loss = (fixed_point.state.double() * torch.linspace(0.5, 2.0, SIZE)).sum()
        found.extend([fixed_point, list(torch.autograd.grad(loss, cell.tensors))])

    warned = [str(one.message) for one in convergence_warnings(run)]
    return Outcome(*found, warned)


def linear_cell(radius: float) -> Cell:
    weight = rotation(radius).requires_grad_()
    drive = torch.ones(BATCH, SIZE, dtype=torch.float64, requires_grad=True)
    return Cell(lambda h: h @ weight + drive, torch.zeros(BATCH, SIZE, dtype=torch.float64), [weight, drive], 1)


def exact(cell: Cell) -> list[Tensor]:
    with torch.no_grad():
        state = cell.start
        for _ in range(5000):
            state = cell.update(state)
    state.requires_grad_()
    following = cell.update(state)
    rows = [torch.autograd.grad(following[:, i].sum(), state, retain_graph=True)[0] for i in range(SIZE)]
    jacobian = torch.stack(rows, 1)
    right = torch.linspace(0.5, 2.0, SIZE).double().expand(BATCH, SIZE)
    adjoint = torch.linalg.solve(torch.eye(SIZE, dtype=torch.float64) - jacobian.mT, right[..., None]).squeeze(-1)
    return list(torch.autograd.grad(following, cell.tensors, adjoint))
