"""Attention in an update: products with J and penalties need second derivatives, which fused kernels lack."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from rbp_lightning import GMRES, FixedPointLayer, Implicit, NormalCG, column_sum_penalty, held, jacobian_penalty
from tests.cells import Cell, dense, loss_of, relative_error
from tests.contracts.test_estimator_contract import ESTIMATORS, EXACT

SOLVERS = {name: entry.exact for name, entry in ESTIMATORS.items()}
SOLVERS |= {"GMRES": Implicit(GMRES(100, 1e-14), EXACT), "NormalCG": Implicit(NormalCG(100, 1e-14), EXACT)}


class ModuleCell(nn.Module):
    """A cell with ``nn.MultiheadAttention``, which uses another kernel in evaluations without gradients."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout, batch_first=True, dtype=torch.float64)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return 0.4 * torch.tanh(self.attention(h, h, h, need_weights=False)[0]) + x


class FunctionCell(nn.Module):
    """A cell with ``scaled_dot_product_attention`` and a causal mask."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(4, 12, dtype=torch.float64)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        query, key, value = self.project(h)[:, None].chunk(3, dim=-1)
        return 0.3 * scaled_dot_product_attention(query, key, value, is_causal=True)[:, 0] + x


def tokens() -> Tensor:
    return torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("make", [ModuleCell, FunctionCell])
def test_every_estimator_gives_the_dense_gradient(make: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    cell, x = make().train(training), tokens()
    # The gradient of the keys' bias is 0 up to rounding, so errors are relative to all gradients together.
    tensors = [x, *cell.parameters()]
    exact = dense(Cell(lambda h: cell(h, x), torch.zeros_like(x).detach(), tensors, 1)).gradients
    for name, estimator in SOLVERS.items():
        layer = FixedPointLayer(cell, estimator)
        found = torch.autograd.grad(loss_of(layer(x)), tensors)
        assert relative_error(list(found), exact) < 1e-9, name


@pytest.mark.parametrize("name", ["CGRBP", "ExactAdjoint", "BPTT"])
def test_dropout_of_attention_keeps_its_mask_over_a_solve(name: str) -> None:
    torch.manual_seed(0)
    cell, x = ModuleCell(dropout=0.3), tokens()
    tensors = [x, *cell.parameters()]
    torch.manual_seed(1)
    update = held(lambda h: cell(h, x), cell)
    exact = dense(Cell(update, torch.zeros_like(x).detach(), tensors, 1)).gradients
    torch.manual_seed(1)
    found = torch.autograd.grad(loss_of(FixedPointLayer(cell, SOLVERS[name])(x)), tensors)
    assert relative_error(list(found), exact) < 1e-9


@pytest.mark.parametrize("make", [ModuleCell, FunctionCell])
@pytest.mark.parametrize("penalty", [jacobian_penalty, column_sum_penalty])
def test_penalties_of_attention_have_the_gradient_of_the_math_kernel(penalty: Callable[..., Tensor], make: Any) -> None:
    torch.manual_seed(0)
    cell, x = make(), tokens().detach()
    options = {} if penalty is jacobian_penalty else {"bound": 0.0}

    def gradient() -> list[Tensor]:
        torch.manual_seed(1)
        value = penalty(lambda h: cell(h, x), x, **options)
        return list(torch.autograd.grad(value, list(cell.parameters()), allow_unused=True, materialize_grads=True))

    found = gradient()
    with sdpa_kernel(SDPBackend.MATH):
        expected = gradient()
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert float(found[0].norm()) > 0
