"""Failures of low precision: norms and states that overflow, and adjoints that autocast rounds."""

from typing import Any

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    CGRBP,
    RBP,
    AdaptiveNeumann,
    ExactAdjoint,
    Failure,
    FixedPoint,
    GradientEstimator,
    Picard,
    Status,
)
from tests.cells import Cell
from tests.diagnostics.outcomes import BATCH, EACH, SIZE, estimators, outcome
from tests.training import convergence_warnings


@pytest.mark.parametrize("start", [1.0, 1.25, 1.5625, 1.9])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@EACH
def test_growth_to_where_norms_overflow_is_divergence(estimator: GradientEstimator, dtype: Any, start: float) -> None:
    # The square of the state's norm overflows some steps before the state does.
    drive = torch.full((2,), start, dtype=dtype, requires_grad=True)
    cell = Cell(lambda h: 2 * h + drive, torch.zeros(2, dtype=dtype), [drive], 0)
    found: list[FixedPoint] = []
    told = convergence_warnings(lambda: found.append(estimator(cell.update, cell.start)))
    assert found[0].status is Status.DIVERGED
    assert told
    assert bool(found[0].state.isfinite().all())


@pytest.mark.parametrize("kind", [type(one) for one in estimators(Picard())])
def test_overflow_of_half_precision_is_told(kind: type) -> None:
    rates = torch.tensor([[0.5], [3.0], [0.25]], dtype=torch.float16)
    drive = torch.ones(BATCH, SIZE, dtype=torch.float16, requires_grad=True)
    cell = Cell(lambda h: rates * h + drive, torch.zeros(BATCH, SIZE, dtype=torch.float16), [drive], 1)
    (estimator,) = [one for one in estimators(Picard(100, tol=1e-2)) if type(one) is kind]
    found = outcome(estimator, cell)
    assert found.fixed_point.samples(Status.DIVERGED).tolist() == [False, True, False]
    assert Failure.DIVERGED.message in found.told[0]
    expected = torch.tensor([2.0, 0.0, 4 / 3])  # the second stays at its best iterate, where it began
    torch.testing.assert_close(found.fixed_point.state[:, 0].float(), expected, rtol=2e-2, atol=0)
    slopes = torch.tensor([2.0, 1.0, 4 / 3])  # of the second, that of one step
    gradient = slopes[:, None] * torch.linspace(0.5, 2.0, SIZE)
    torch.testing.assert_close(found.gradients[0].float(), gradient, rtol=2e-2, atol=0)


@pytest.mark.parametrize("kind", [RBP, CGRBP, AdaptiveNeumann, ExactAdjoint])
def test_what_autocast_does_to_an_adjoint_is_told_or_is_rounding(kind: type) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = (0.8 * torch.linalg.qr(torch.randn(64, 64, generator=generator))[0]).requires_grad_()
    drive = torch.randn(BATCH, 64, generator=generator)
    added = torch.zeros(BATCH, 64, requires_grad=True)
    states: list[Tensor] = []

    def run() -> None:
        update = lambda h: torch.tanh(h @ weight + drive).float() + added  # noqa: E731
        with torch.autocast("cpu", torch.bfloat16):
            states.append(kind(solver=Picard(100, tol=1e-2))(update, torch.zeros(BATCH, 64), 1).state)
        states[0].sum().backward()

    told = convergence_warnings(run)
    slope = 1 - torch.tanh(states[0].detach() @ weight + drive) ** 2
    jacobian = (slope[:, :, None] * weight.T).detach()
    exact = torch.linalg.solve(torch.eye(64) - jacobian.mT, torch.ones(BATCH, 64, 1)).squeeze(-1)
    error = float((added.grad - exact).norm() / exact.norm())
    assert 1e-3 < error < 0.05  # all of them, as the products are rounded
    # What is asked for is out of reach. A missed bound is told; what is as near as rounding allows is not.
    assert bool(told) == (kind is AdaptiveNeumann)
    assert told or error < 2 * torch.finfo(torch.bfloat16).eps
