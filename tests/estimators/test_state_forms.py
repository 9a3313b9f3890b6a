"""Complex states, states as dataclasses or with None, and auxiliary outputs of an update."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from rbp_lightning import (
    BPTT,
    CGRBP,
    TBPTT,
    ExactAdjoint,
    GradientEstimator,
    Implicit,
    Picard,
    UserError,
    WarmStart,
)
from tests.cells import tanh_cell

EXACT = Picard(1000, 1e-15)
ESTIMATORS = [BPTT(EXACT), TBPTT(200, EXACT), CGRBP(100, 1e-14, solver=EXACT), ExactAdjoint(solver=EXACT)]


def complex_step(h: Tensor, weight: Tensor, drive: Tensor) -> Tensor:
    """An update that is not holomorphic: it uses the modulus and the conjugate of h."""
    return 0.4 * (h @ weight) / (1 + h.abs().square()) + 0.2j * h.conj() + drive


def complex_inputs(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.linalg.qr(torch.randn(3, 3, generator=generator, dtype=torch.complex128))[0]
    drive = torch.randn(2, 3, generator=generator, dtype=torch.complex128)
    return weight.clone().requires_grad_(), drive.requires_grad_()


def complex_loss(state: Tensor) -> Tensor:
    return (state.real * torch.arange(1, 4)).sum() + state.abs().square().sum()


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda one: type(one).__name__)
@pytest.mark.parametrize("batch_dims", [0, 1])
def test_complex_states_get_the_gradient_of_converged_bptt(estimator: GradientEstimator, batch_dims: int) -> None:
    weight, drive = complex_inputs(0)
    h = torch.zeros_like(drive)
    for _ in range(200):
        h = complex_step(h, weight, drive)
    exact = torch.autograd.grad(complex_loss(h), [weight, drive])
    result = estimator(lambda h: complex_step(h, weight, drive), torch.zeros_like(drive), batch_dims=batch_dims)
    assert result.state.dtype is torch.complex128
    assert result.residual.shape == drive.shape[:batch_dims]
    found = torch.autograd.grad(complex_loss(result.state), [weight, drive])
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_complex_states_have_second_derivatives() -> None:
    weight, drive = complex_inputs(1)

    def curvature(state: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(complex_loss(state), weight, create_graph=True)
        return torch.autograd.grad(first.abs().square().sum(), weight)[0]

    h = torch.zeros_like(drive)
    for _ in range(200):
        h = complex_step(h, weight, drive)
    solved = ExactAdjoint(solver=EXACT)(lambda h: complex_step(h, weight, drive), torch.zeros_like(drive), 1, order=2)
    torch.testing.assert_close(curvature(solved.state), curvature(h), rtol=1e-9, atol=1e-12)


@dataclass
class Pair:
    first: Tensor
    second: Any
    nothing: None = None


def pair_update(h: Tensor | Pair, weight: Tensor) -> Pair:
    return Pair(torch.tanh(0.5 * h.first @ weight + 1), {"deep": (0.3 * h.second["deep"][0] + h.first, None)})


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda one: type(one).__name__)
def test_states_may_be_dataclasses_and_contain_none(estimator: GradientEstimator) -> None:
    weight = tanh_cell(0).tensors[0].detach().requires_grad_()
    zeros = torch.zeros(3, 4, dtype=torch.float64)
    start = Pair(zeros, {"deep": (zeros, None)})
    result = estimator(lambda h: pair_update(h, weight), start, batch_dims=1)
    assert isinstance(result.state, Pair)
    assert result.state.second["deep"][1] is None
    joined = BPTT(EXACT)(
        lambda h: (torch.tanh(0.5 * h[0] @ weight + 1), 0.3 * h[1] + h[0]), (zeros, zeros), batch_dims=1
    ).state
    for mine, other in ((result.state.first, joined[0]), (result.state.second["deep"][0], joined[1])):
        one, two = (torch.autograd.grad(leaf.square().sum(), weight, retain_graph=True)[0] for leaf in (mine, other))
        torch.testing.assert_close(one, two, rtol=1e-9, atol=1e-12)


def test_warm_starts_keep_complex_states() -> None:
    weight, drive = complex_inputs(2)
    warm_start = WarmStart()
    steps = [
        Implicit(solver=Picard(100, 1e-10, check_every=1))(
            lambda h: complex_step(h, weight, drive), torch.zeros_like(drive), warm_start=warm_start
        ).steps
        for _ in range(2)
    ]
    assert steps[1] <= 3 < steps[0]


def test_another_dtype_or_structure_is_refused() -> None:
    with pytest.raises(UserError, match="dense floating-point"):
        Implicit()(lambda h: h.real, torch.zeros(2, dtype=torch.complex64))
    with pytest.raises(UserError, match="batch_dims=1"):
        Implicit()(lambda h: 0.5 * h, torch.zeros((), dtype=torch.complex64), batch_dims=1)
    with pytest.raises(UserError, match="structure"):
        Implicit()(lambda h: h.first, Pair(torch.zeros(2), torch.zeros(2)))


# --- auxiliary outputs


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=lambda one: type(one).__name__)
def test_aux_is_evaluated_at_the_fixed_point_and_differentiable(estimator: GradientEstimator) -> None:
    cell = tanh_cell(0)
    weight, drive = cell.tensors

    def update(h: Tensor) -> tuple[Tensor, dict[str, Any]]:
        before = h @ weight + drive
        return torch.tanh(before), {"before": before, "name": "tanh"}

    result = estimator(update, cell.start, batch_dims=1, has_aux=True)
    assert result.aux["name"] == "tanh"
    torch.testing.assert_close(result.aux["before"].tanh(), result.state)
    h = cell.start
    for _ in range(300):
        h = torch.tanh(h @ weight + drive)
    exact = torch.autograd.grad((h @ weight + drive).square().sum(), cell.tensors)
    found = torch.autograd.grad(result.aux["before"].square().sum(), cell.tensors)
    for one, other in zip(found, exact, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-12)


def test_an_update_that_does_not_return_a_pair_is_refused() -> None:
    with pytest.raises(UserError, match="has_aux=True"):
        Implicit()(torch.cos, torch.zeros(2), has_aux=True)
