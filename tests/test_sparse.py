"""Sparse products and their derivatives, against dense matrices."""

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
def test_products_and_derivatives_equal_those_of_the_dense_matrix(dense, width, seed) -> None:
    generator = torch.Generator().manual_seed(seed)
    # The entries may come in any order.
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


@settings(deadline=None)
@given(dense=matrices(), data=st.data())
def test_selected_rows_equal_those_of_the_dense_matrix(dense, data) -> None:
    size = len(dense)
    matrix = SparseMatrix.from_dense(dense)
    row, col, values = matrix.entries
    assert torch.equal(torch.zeros_like(dense).index_put((row, col), values), dense)
    index = data.draw(
        st.lists(st.integers(0, size - 1), min_size=1, max_size=9).map(torch.tensor)
        | st.tuples(st.integers(0, size), st.integers(0, size)).map(lambda ends: slice(*ends))
    )
    states = torch.eye(dense.shape[1], dtype=torch.float64, requires_grad=True)
    product = matrix.rows(index) @ states
    assert torch.equal(product, dense[index])
    weight = torch.arange(1.0, product.numel() + 1, dtype=torch.float64).reshape(product.shape)
    torch.testing.assert_close(torch.autograd.grad(product, states, weight)[0], dense[index].T @ weight)


def test_rows_out_of_range_and_strided_slices_are_refused() -> None:
    matrix = SparseMatrix.from_dense(torch.eye(3))
    with pytest.raises(UserError, match=r"index holds 3.*\[0, 3\)"):
        matrix.rows(torch.tensor([0, 3]))
    with pytest.raises(UserError, match=r"has the step 2"):
        matrix.rows(slice(0, 3, 2))


def test_forward_mode_and_second_derivatives_are_right() -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = SparseMatrix.from_dense(torch.randn(4, 3, generator=generator, dtype=torch.float64).relu())
    states = torch.randn(3, 2, generator=generator, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: (matrix @ x).sin(), states, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(lambda x: (matrix @ x).sin(), states, check_fwd_over_rev=True)


def test_with_values_replaces_the_values_only() -> None:
    dense = torch.tensor([[0.0, 2.0, 3.0], [4.0, 0.0, 0.0]])
    matrix = SparseMatrix.from_dense(dense)
    other = matrix.with_values(matrix.values * torch.tensor([1.0, 0.0, 10.0]))
    expected = torch.tensor([[0.0, 2.0, 0.0], [40.0, 0.0, 0.0]])
    states = torch.eye(3, requires_grad=True)
    assert torch.equal(other @ states, expected)
    assert torch.equal(torch.autograd.grad(other @ states, states, torch.eye(2, 3))[0], expected.T @ torch.eye(2, 3))
    assert torch.equal(matrix @ states, dense)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_low_precision_states_keep_their_dtype(dtype) -> None:
    matrix = SparseMatrix.from_dense(torch.full((2, 3), 0.5))
    states = torch.ones(3, 2, dtype=dtype, requires_grad=True)
    product = matrix @ states
    assert product.dtype == dtype
    assert torch.equal(product.detach().float(), torch.full((2, 2), 1.5))
    product.sum().backward()
    assert states.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_float64_states_are_multiplied_in_float64(dtype) -> None:
    """An audit evaluates a module in float64 that holds its matrix in float32."""
    generator = torch.Generator().manual_seed(0)
    dense = torch.rand(5, 4, generator=generator).to(dtype)
    matrix = SparseMatrix.from_dense(dense)
    states = torch.rand(4, 3, generator=generator, dtype=torch.float64, requires_grad=True)
    with torch.inference_mode():
        matrix @ states
    product = matrix @ states
    torch.testing.assert_close(product, dense.double() @ states, rtol=1e-15, atol=1e-15)
    (gradient,) = torch.autograd.grad(product.square().sum(), states)
    torch.testing.assert_close(gradient, 2 * dense.double().T @ product, rtol=1e-14, atol=1e-14)


def test_autocast_does_not_change_the_product() -> None:
    matrix = SparseMatrix.from_dense(torch.full((2, 3), 0.5))
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(matrix @ torch.ones(3, 2), torch.full((2, 2), 1.5))


def test_values_that_require_a_gradient_are_refused() -> None:
    matrix = SparseMatrix.from_dense(torch.eye(2))
    with pytest.raises(UserError, match=r"values requires a gradient, .*detach it"):
        matrix.with_values(matrix.values.clone().requires_grad_())


# --- indices


def pairs(*places: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor]:
    rows, columns = zip(*places, strict=True)
    return torch.tensor(rows), torch.tensor(columns)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int16, torch.int32, torch.int64])
def test_indices_may_be_of_any_integer_dtype(dtype) -> None:
    row, col = pairs((199, 0), (3, 199), (3, 7), (150, 150))
    values, states = torch.arange(1.0, 5), torch.rand(200, 2, generator=torch.Generator().manual_seed(0))
    expected = torch.zeros(200, 200).index_put((row, col), values) @ states
    torch.testing.assert_close(SparseMatrix(row.to(dtype), col.to(dtype), values, (200, 200)) @ states, expected)


def test_flat_indices_do_not_overflow() -> None:
    """A square matrix with 46,341 columns has more entries than int32 can number."""
    size = 50_000
    row, col = pairs((size - 1, size - 1), (size - 1, 0), (46_341, 46_341), (0, size - 1))
    states = torch.arange(float(size))[:, None].requires_grad_()
    for dtype in (torch.int32, torch.int64):
        product = SparseMatrix(row.to(dtype), col.to(dtype), torch.ones(4), (size, size)) @ states
        assert product[[size - 1, 46_341, 0], 0].tolist() == [size - 1, 46_341, size - 1]
        (gradient,) = torch.autograd.grad(product.sum(), states)
        assert gradient[[0, 46_341, size - 1], 0].tolist() == [1, 1, 2]


TWO = torch.tensor([0, 1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"col": torch.tensor([0, 5])}, r"col holds 5.*\[0, 2\)"),
        ({"row": torch.tensor([0, 5])}, r"row holds 5.*\[0, 2\)"),
        ({"row": torch.tensor([1, 2]), "col": torch.tensor([1, 2])}, r"row holds 2, .*count from 0"),
        ({"col": torch.tensor([0, -1])}, r"col holds -1.*\[0, 2\)"),
        ({"row": torch.tensor([0.0, 1.0])}, r"row has the dtype torch\.float32: convert it to integers"),
        ({"row": torch.tensor([False, True])}, r"row has the dtype torch\.bool"),
        ({"row": [0, 1]}, r"row must be a tensor of shape \[num_entries\], not list"),
        ({"row": TWO[None]}, r"row must be a tensor of shape \[num_entries\], not \[1, 2\]"),
        ({"col": torch.tensor(0)}, r"col must be a tensor of shape \[num_entries\], not \[\]"),
        ({"values": torch.ones(3)}, r"shapes \[2\], \[2\], \[3\]"),
        ({"values": torch.ones(2, 1)}, r"shapes \[2\], \[2\], \[2, 1\]"),
        ({"col": TWO[:1]}, r"shapes \[2\], \[1\], \[2\]"),
        ({"values": [1.0, 2.0]}, r"shapes \[2\], \[2\], list"),
        ({"values": TWO}, r"values has the dtype torch\.int64"),
        ({"values": torch.ones(2, device="meta")}, "cpu, cpu and meta"),
        ({"row": torch.tensor([1, 1]), "col": torch.tensor([0, 0])}, r"two entries at \(1, 0\): add them up"),
        ({"shape": (2,)}, r"shape=\(2,\)"),
        ({"shape": 2}, "shape=2 must be"),
        ({"shape": (2, -1)}, r"shape\[1\]=-1 must be a whole number of at least 0"),
        ({"shape": (2.5, 2)}, r"shape\[0\]=2\.5 must be"),
    ],
)
def test_malformed_entries_are_refused_at_once(arguments, message) -> None:
    valid = {"row": TWO, "col": TWO, "values": torch.ones(2), "shape": (2, 2)}
    SparseMatrix(**valid)
    with pytest.raises(UserError, match=f"^SparseMatrix: .*{message}"):
        SparseMatrix(**{**valid, **arguments})


def test_values_and_factors_that_do_not_fit_are_refused() -> None:
    matrix = SparseMatrix.from_dense(torch.eye(2))
    with pytest.raises(UserError, match=r"values has the shape \[3\]: pass .*\[2\]"):
        matrix.with_values(torch.ones(3))
    with pytest.raises(UserError, match=r"dense has the shape \[3\]"):
        SparseMatrix.from_dense(torch.ones(3))
    for dtype in (torch.int64, torch.complex64):  # would be rounded, or lose its imaginary part
        with pytest.raises(UserError, match=f"the other factor has the dtype {dtype}"):
            matrix @ torch.ones(2, 1, dtype=dtype)


def test_a_matrix_without_entries_gives_zeros() -> None:
    nothing = torch.empty(0, dtype=torch.int32)
    assert torch.equal(SparseMatrix(nothing, nothing, torch.empty(0), (2, 3)) @ torch.ones(3, 1), torch.zeros(2, 1))
