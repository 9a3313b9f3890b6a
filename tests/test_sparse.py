"""The sparse product and its derivatives against dense matrices."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rbp_lightning import SparseMatrix, UserError


@st.composite
def matrices(draw: st.DrawFn) -> torch.Tensor:
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**31)))
    rows, columns = draw(st.integers(1, 7)), draw(st.integers(1, 7))
    dense = torch.randn(rows, columns, generator=generator, dtype=torch.float64)
    return dense * (torch.rand(rows, columns, generator=generator) < draw(st.floats(0, 1)))


@settings(deadline=None)
@given(dense=matrices(), width=st.integers(1, 3), seed=st.integers(0, 2**31))
def test_product_and_derivatives_are_those_of_the_dense_matrix(dense, width, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    # In an order of entries that is not the matrix's.
    row, col = dense.nonzero(as_tuple=True)
    shuffled = torch.randperm(len(row), generator=generator)
    row, col = row[shuffled], col[shuffled]
    matrix = SparseMatrix(row, col, dense[row, col], (dense.shape[0], dense.shape[1]))
    states = torch.randn(dense.shape[1], width, generator=generator, dtype=torch.float64, requires_grad=True)
    product = matrix @ states
    torch.testing.assert_close(product, dense @ states)
    weight = torch.randn(product.shape, generator=generator, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(product, states, weight)
    torch.testing.assert_close(gradient, dense.T @ weight)


def test_forward_mode_and_second_derivatives() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = SparseMatrix.from_dense(torch.randn(4, 3, generator=generator, dtype=torch.float64).relu())
    states = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: (matrix @ x).sin(), states, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: (matrix @ x).sin(), states, check_fwd_over_rev=True)


def test_other_values_at_the_same_places() -> None:
    dense = torch.tensor([[0.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
    matrix = SparseMatrix.from_dense(dense)
    other = matrix.with_values(matrix.values * torch.tensor([1.0, 0.0, 10.0]))
    expected = torch.tensor([[0.0, 2.0, 0.0], [40.0, 0.0, 0.0]])
    states = torch.eye(3, requires_grad=True)
    assert torch.equal(other @ states, expected)
    assert torch.equal(torch.autograd.grad(other @ states, states, torch.eye(2, 3))[0], expected.T @ torch.eye(2, 3))
    assert torch.equal(matrix @ states, dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_states_keep_their_type(dtype) -> None:
    matrix = SparseMatrix.from_dense(torch.full((2, 3), 0.5))
    states = torch.ones(3, 2, dtype=dtype, requires_grad=True)
    product = matrix @ states
    assert product.dtype == dtype
    assert torch.equal(product.detach().float(), torch.full((2, 2), 1.5))
    product.sum().backward()
    assert states.grad.dtype == dtype


def test_autocast_leaves_the_product_alone() -> None:
    matrix = SparseMatrix.from_dense(torch.full((2, 3), 0.5))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matrix @ torch.ones(3, 2), torch.full((2, 2), 1.5))


def test_entries_that_want_a_gradient_are_refused() -> None:
    matrix = SparseMatrix.from_dense(torch.eye(2))
    with pytest.raises(UserError, match="entries take no gradient"):
        matrix.with_values(matrix.values.clone().requires_grad_())
