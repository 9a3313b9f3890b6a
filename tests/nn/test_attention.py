"""Attention inside an update: fused kernels have no second derivative, which products with J and penalties need."""

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
    """PyTorch's module, which in an evaluation without gradients takes a kernel of its own."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, dropout, batch_first=True, dtype=torch.float64)

    def forward(self, h: Tensor, x: Tensor) -> Tensor:
        return 0.4 * torch.tanh(self.attention(h, h, h, need_weights=False)[0]) + x


class FunctionCell(nn.Module):
    """The function, with a mask."""

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
def test_every_estimator_has_the_dense_gradient(make: Callable[[], nn.Module], training: bool) -> None:
    torch.manual_seed(0)
    cell, x = make().train(training), tokens()
    # A bias of keys has no effect, and no gradient but rounding.
    tensors = [x, *cell.parameters()]
    exact = dense(Cell(lambda h: cell(h, x), torch.zeros_like(x).detach(), tensors, 1)).gradients
    for name, estimator in SOLVERS.items():
        layer = FixedPointLayer(cell, estimator)
        found = torch.autograd.grad(loss_of(layer(x)), tensors)
        assert relative_error(list(found), exact) < 1e-9, name


@pytest.mark.parametrize("name", ["CGRBP", "ExactAdjoint", "BPTT"])
def test_dropout_of_attention_is_held(name: str) -> None:
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
def test_penalties_of_attention_can_be_differentiated(penalty: Callable[..., Tensor], make: Any) -> None:
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
