"""Products with a constant sparse matrix, as the propagation along the edges of a graph."""

import warnings
from typing import Any

import torch
from torch import Tensor

from rbp_lightning.errors import UserError


class SparseMatrix:
    """A constant sparse matrix A with a fast product A X and fast derivatives of it.

    PyTorch's own backward of a CSR product transposes the matrix anew each time. Here the transpose is made once. The
    product has VJPs, JVPs and second derivatives with respect to X; the matrix is a constant, so it takes no gradient.

    Args:
        row: Rows of the entries, integers of shape ``[num_entries]``; no entry may occur twice.
        col: Columns of the entries, of the same shape.
        values: Entries, floating point, of the same shape.
        shape: Number of rows and of columns.

    Raises:
        UserError: If the entries require a gradient.

    Example:
        >>> matrix = SparseMatrix(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), (2, 2))
        >>> matrix @ torch.tensor([[1.0], [10.0]])
        tensor([[21.],
                [ 0.]])
    """

    def __init__(self, row: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        self.shape = shape
        by_row = torch.argsort(row * shape[1] + col)
        row, col = row[by_row], col[by_row]
        by_col = torch.argsort(col * shape[0] + row)
        self._order = by_col
        self._indices = _compressed(row, shape[0]), col
        self._transposed_indices = _compressed(col[by_col], shape[1]), row[by_col]
        self._set(values[by_row])

    @classmethod
    def from_dense(cls, dense: Tensor) -> "SparseMatrix":
        """Takes the entries of a matrix that are not zero.

        Args:
            dense: The matrix, floating point, of shape ``[rows, columns]``.
        """
        row, col = dense.nonzero(as_tuple=True)
        return cls(row, col, dense[row, col], (dense.shape[0], dense.shape[1]))

    def _set(self, values: Tensor) -> None:
        if values.requires_grad:
            raise UserError("SparseMatrix: its entries take no gradient, but these require one: detach them.")
        self.values = values
        rows, columns = self.shape
        self._matrix = _csr(self._indices, values, (rows, columns))
        self._transposed = _csr(self._transposed_indices, values[self._order], (columns, rows))

    def with_values(self, values: Tensor) -> "SparseMatrix":
        """Returns a matrix with the same places of entries.

        Args:
            values: Its entries, in the order of ``self.values``, row by row.
        """
        other = object.__new__(SparseMatrix)
        other.shape, other._order = self.shape, self._order
        other._indices, other._transposed_indices = self._indices, self._transposed_indices
        other._set(values)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseMatrix":
        """Returns the matrix itself: it is a constant, and PyTorch cannot copy a CSR tensor deeply."""
        return self

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Product with a dense matrix of shape ``[columns, d]``; in its dtype, but computed in that of the entries."""
        product: Tensor = _Product.apply(self._matrix, self._transposed, dense.to(self.values.dtype))  # type: ignore[no-untyped-call]
        return product.to(dense.dtype)


def _compressed(index: Tensor, size: int) -> Tensor:
    counts = torch.bincount(index, minlength=size)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _csr(indices: tuple[Tensor, Tensor], values: Tensor, shape: tuple[int, int]) -> Tensor:
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
        # PyTorch 2.11 says so on a GPU, though the choice is made here.
        warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
        return torch.sparse_csr_tensor(*indices, values, shape, check_invariants=False)


class _Product(torch.autograd.Function):
    """Sparse times dense, differentiable in the dense factor as often as wanted."""

    # Without a setup_context of its own, for which PyTorch would inspect the signature at every call.
    @staticmethod
    def forward(ctx: Any, matrix: Tensor, transposed: Tensor, dense: Tensor) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        with torch.autocast(dense.device.type, enabled=False):  # there is no such product in low precision
            return matrix @ dense

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, None, _Product.apply(ctx.transposed, ctx.matrix, gradient)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, matrix: None, transposed: None, tangent: Tensor) -> Any:
        return _Product.apply(ctx.matrix, ctx.transposed, tangent)  # type: ignore[no-untyped-call]
