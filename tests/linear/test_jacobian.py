"""Products with the Jacobian, against dense matrices."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._pytree import tree_flatten

from rbp_lightning import JacobianOperator, UserError
from tests.cells import Cell, cells, dense, gru_cell, hopfield_cell, settle, tanh_cell


def operator_at(cell: Cell) -> tuple[JacobianOperator, Any]:
    state = settle(cell, 500)
    return JacobianOperator.at(cell.update, state, cell.batch_dims), state


@pytest.mark.parametrize("maker", [tanh_cell, gru_cell, hopfield_cell])
def test_products_equal_dense_ones(maker) -> None:
    cell = maker(0)
    operator, state = operator_at(cell)
    vector = torch.randn_like(state)
    jacobian = dense(cell).jacobian
    for product, matrix in ((operator.vjp, jacobian.T), (operator.jvp, jacobian)):
        torch.testing.assert_close(product([vector])[0].reshape(-1), matrix @ vector.reshape(-1))
    torch.testing.assert_close(operator._jvp_forward_mode([vector]), operator.jvp([vector]))
    assert operator.products == 3


@settings(max_examples=15, deadline=None)
@given(cell=cells())
def test_dense_gives_the_jacobian_of_any_state(cell: Cell) -> None:
    operator, _ = operator_at(cell)
    found, exact = operator.dense(), dense(cell).jacobian
    if cell.batch_dims == 0:
        torch.testing.assert_close(found, exact)
    else:
        norms = torch.linalg.matrix_norm(found)
        assert float(norms.square().sum()) == pytest.approx(float(exact.square().sum()))


@settings(max_examples=15, deadline=None)
@given(cell=cells(), seed=st.integers(0, 99))
def test_flat_vectors_and_products_match_the_leaves(cell: Cell, seed: int) -> None:
    operator, state = operator_at(cell)
    leaves = tree_flatten(state)[0]
    flat = operator.ravel(leaves)
    assert flat.shape == (*operator.batch_shape, operator.size)
    for one, other in zip(operator.unravel(flat), leaves, strict=True):
        assert torch.equal(one, other)
    one, other = operator.random_unit_vector(seed), operator.random_unit_vector(seed + 1)
    torch.testing.assert_close(one.norm(dim=-1), torch.ones(operator.batch_shape, dtype=torch.float64))
    assert not torch.equal(one, other)
    left, right = (operator.flat_jvp(one) * other).sum(-1), (one * operator.flat_vjp(other)).sum(-1)
    torch.testing.assert_close(left, right)


def test_the_product_of_a_hopfield_network_has_its_closed_form() -> None:
    cell = hopfield_cell(0)
    operator, state = operator_at(cell)
    vector = torch.randn_like(state)
    found = operator.jvp([vector])[0]
    step = 1e-6
    with torch.no_grad():
        difference = (cell.update(state + step * vector) - cell.update(state - step * vector)) / (2 * step)
    torch.testing.assert_close(found, difference, atol=1e-8, rtol=1e-6)
    # W (b sigma'(b h) * v), not sigma'(W h) * (W v).
    original = cell.tensors[1]
    weight = (original.triu(1) + original.triu(1).T)[2:, 2:]
    slope = 1.5 * torch.sigmoid(1.5 * state) * (1 - torch.sigmoid(1.5 * state))
    torch.testing.assert_close(found, 0.3 * vector + (slope * vector) @ weight)


def test_leaves_are_paired_by_name() -> None:
    def update(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return {"b": 3 * state["a"], "a": 2 * state["b"]}

    operator = JacobianOperator.at(update, {"a": torch.zeros(1), "b": torch.zeros(1)}, 0)
    one, two = torch.tensor([1.0]), torch.tensor([10.0])
    assert operator.jvp([one, two]) == [torch.tensor([20.0]), torch.tensor([3.0])]
    assert operator.vjp([one, two]) == [torch.tensor([30.0]), torch.tensor([2.0])]
    assert operator.dense().tolist() == [[0.0, 2.0], [3.0, 0.0]]


def test_products_are_zero_for_parts_that_do_not_depend_on_the_state() -> None:
    constant = torch.ones(2)
    operator = JacobianOperator.at(lambda h: constant * 1.0, torch.zeros(2), 0)
    assert operator.vjp([torch.ones(2)])[0].tolist() == [0.0, 0.0]
    assert operator.jvp([torch.ones(2)])[0].tolist() == [0.0, 0.0]
    partly = JacobianOperator.at(lambda s: (2 * s[0], constant * 1.0), (torch.zeros(2), torch.zeros(2)), 0)
    assert [leaf.tolist() for leaf in partly.jvp([torch.ones(2)] * 2)] == [[2.0, 2.0], [0.0, 0.0]]
    assert [leaf.tolist() for leaf in partly.vjp([torch.ones(2)] * 2)] == [[2.0, 2.0], [0.0, 0.0]]


@pytest.mark.parametrize("batched", [True, False])
def test_the_adjoint_residual_is_zero_at_the_solution_and_one_at_zero(batched: bool) -> None:
    cell = tanh_cell(0)
    cell.batch_dims = int(batched)
    operator, state = operator_at(cell)
    reference = dense(cell)
    exact, gradient = (flat.reshape(state.shape) for flat in (reference.adjoint, reference.gradient))
    assert float(operator.adjoint_residual([gradient], [exact]).max()) < 1e-12
    off = operator.adjoint_residual([gradient], [torch.zeros_like(exact)])
    torch.testing.assert_close(off, torch.ones_like(off))
    nothing = operator.adjoint_residual([torch.zeros_like(gradient)], [torch.zeros_like(exact)])
    assert nothing.tolist() == torch.zeros_like(nothing).tolist()


def test_products_keep_the_dtype_of_the_vector() -> None:
    operator = JacobianOperator.at(lambda h: 0.5 * h, torch.zeros(2, dtype=torch.bfloat16), 0)
    for product in (operator.vjp, operator.jvp):
        assert product([torch.ones(2)])[0].dtype is torch.float32


def test_an_update_of_another_structure_is_refused() -> None:
    with pytest.raises(UserError, match="structure"):
        JacobianOperator.at(lambda s: [s["a"]], {"a": torch.zeros(1)}, 0)
