"""A constant sparse matrix with differentiable products, such as for propagation on a graph."""

import warnings
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from rbp_lightning.errors import UserError, check_count, check_instance
from rbp_lightning.pytree import FLOATS


class SparseMatrix:
    """A constant sparse matrix A with fast products A X, also in the backward pass.

    The backward pass of PyTorch's CSR product transposes the matrix on every call; here the transpose is computed once,
    for the first gradient. The product has VJPs, JVPs and second derivatives with respect to X. A is a constant without
    a gradient.

    Args:
        row: Row index of each entry, from 0: integers of shape ``[num_entries]``.
        col: Column index of each entry, from 0, of the same shape. There must not be two entries in one place.
        values: The entries, floating point, of the same shape.
        shape: Number of rows and number of columns.

    Raises:
        UserError: If an argument is invalid, or the values require a gradient.

    Example:
        >>> matrix = SparseMatrix(torch.tensor([0, 0]), torch.tensor([0, 1]), torch.tensor([1.0, 2.0]), (2, 2))
        >>> matrix @ torch.tensor([[1.0], [10.0]])
        tensor([[21.],
                [ 0.]])
    """

    def __init__(self, row: Tensor, col: Tensor, values: Tensor, shape: tuple[int, int]) -> None:
        self.shape = _checked_shape(shape)
        row = _checked_index("row", row, self.shape[0])
        col = _checked_index("col", col, self.shape[1])
        _check_entries(row, col, values)
        # Two stable sorts order the entries by row, then column, without combined indices, which could overflow.
        by_col = torch.argsort(col, stable=True)
        by_row = by_col[torch.argsort(row[by_col], stable=True)]
        row, col = row[by_row], col[by_row]
        _check_unique(row, col)
        self._set(_Pattern(_row_pointers(row, self.shape[0]), col, self.shape), values[by_row])

    @classmethod
    def from_dense(cls, dense: Tensor) -> "SparseMatrix":
        """Returns the sparse form of a dense matrix.

        Args:
            dense: The matrix, floating point, of shape ``[rows, columns]``.

        Raises:
            UserError: If ``dense`` is not such a matrix.
        """
        check_instance(SparseMatrix, "dense", dense, Tensor, "a matrix, [rows, columns]")
        if dense.dim() != 2 or dense.dtype not in FLOATS or dense.layout is not torch.strided or dense.is_meta:
            raise UserError(
                f"SparseMatrix: dense has the shape {list(dense.shape)}, the dtype {dense.dtype} and the layout "
                f"{dense.layout}, on {dense.device}: pass a dense floating-point matrix, [rows, columns]."
            )
        row, col = dense.nonzero(as_tuple=True)
        return cls(row, col, dense[row, col], (dense.shape[0], dense.shape[1]))

    def with_values(self, values: Tensor) -> "SparseMatrix":
        """Returns a matrix with the same sparsity pattern and other values.

        Args:
            values: The entries, in the order of ``self.values``: by row, then by column.

        Raises:
            UserError: If the number of values differs, or they require a gradient.
        """
        check_instance(self, "values", values, Tensor, "a value for each entry")
        if values.shape != self.values.shape:
            raise UserError(
                f"SparseMatrix: values has the shape {list(values.shape)}: pass a tensor of shape "
                f"{list(self.values.shape)}, a value for each entry."
            )
        return self._with(self._pattern, values)

    def rows(self, index: slice | Tensor) -> "SparseMatrix":
        """Returns a matrix of some of the rows.

        Args:
            index: The rows: a slice with step 1, whose entries are not copied, or integers of shape ``[num_rows]``.

        Raises:
            UserError: If the slice has another step, or an index is out of range.

        Example:
            >>> matrix = SparseMatrix.from_dense(torch.tensor([[1.0, 0.0], [0.0, 2.0], [3.0, 4.0]]))
            >>> matrix.rows(torch.tensor([2, 0])) @ torch.eye(2)
            tensor([[3., 4.],
                    [1., 0.]])
        """
        pointers = self._pattern.pointers
        if isinstance(index, slice):
            first, last, step = index.indices(self.shape[0])
            if step != 1:
                raise UserError(f"SparseMatrix: index={index} has the step {step}: pass a slice with step 1.")
            pointers = pointers[first : max(first, last) + 1]
            begin, end = int(pointers[0]), int(pointers[-1])
            pattern = _Pattern(pointers - begin, self._pattern.col[begin:end], (len(pointers) - 1, self.shape[1]))
            return self._with(pattern, self.values[begin:end])
        index = _checked_index("index", index, self.shape[0])
        counts = (pointers[index + 1] - pointers[index]).long()
        own = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        shift = pointers[index] - own[:-1]
        entries = torch.arange(int(own[-1]), device=index.device) + shift.repeat_interleave(counts)
        return self._with(_Pattern(own, self._pattern.col[entries], (len(index), self.shape[1])), self.values[entries])

    @property
    def entries(self) -> tuple[Tensor, Tensor, Tensor]:
        """Row index, column index and value of each entry, in the order of ``values``."""
        counts = self._pattern.pointers.diff()
        row = torch.arange(self.shape[0], device=counts.device).repeat_interleave(counts)
        return row, self._pattern.col.long(), self.values

    def _with(self, pattern: "_Pattern", values: Tensor) -> "SparseMatrix":
        other = object.__new__(SparseMatrix)
        other._set(pattern, values)
        return other

    def _set(self, pattern: "_Pattern", values: Tensor) -> None:
        if values.requires_grad:
            raise UserError("SparseMatrix: values requires a gradient, but a SparseMatrix is constant: detach it.")
        if values.dtype not in FLOATS or values.layout is not torch.strided or values.is_meta:
            raise UserError(
                f"SparseMatrix: values has the dtype {values.dtype} and the layout {values.layout}, on "
                f"{values.device}: convert it to a dense floating-point tensor."
            )
        self.shape, self.values, self._pattern = pattern.shape, values, pattern

    @cached_property
    def _matrix(self) -> Tensor:
        return self._pattern.csr(self.values)

    @cached_property
    def _transposed(self) -> Tensor:
        with torch.inference_mode(False):
            return self._pattern.transposed.csr(self.values[self._pattern.order])

    @cached_property
    def _in_float64(self) -> "SparseMatrix":
        with torch.inference_mode(False):  # training cannot use tensors created in inference mode by a validation
            return self.with_values(self.values.double())

    def __getstate__(self) -> dict[str, Any]:
        """The state to pickle: without PyTorch's CSR tensors, which are created again, since PyTorch warns of them."""
        return {
            name: value for name, value in vars(self).items() if name not in ("_matrix", "_transposed", "_in_float64")
        }

    def __deepcopy__(self, memo: dict[int, Any]) -> "SparseMatrix":
        """Returns the matrix itself, since it is constant, and PyTorch cannot deep-copy a CSR tensor."""
        return self

    def __matmul__(self, dense: Tensor) -> Tensor:
        """Multiplies by a dense matrix of shape ``[columns, d]``; the result has the dtype of that matrix.

        The product is computed in the dtype of the entries, or in float64 if the dtype of ``dense`` is wider.

        Raises:
            UserError: If ``dense`` is not a floating-point matrix with as many rows as this matrix has columns.
        """
        if not isinstance(dense, Tensor):
            return NotImplemented
        if dense.dtype not in FLOATS or dense.layout is not torch.strided:
            raise UserError(
                f"SparseMatrix: the other factor has the dtype {dense.dtype} and the layout {dense.layout}: convert it "
                "to a dense floating-point matrix."
            )
        if dense.dim() not in (1, 2) or dense.shape[0] != self.shape[1] or dense.device != self.values.device:
            raise UserError(
                f"SparseMatrix: the other factor has the shape {list(dense.shape)}, on {dense.device}: pass "
                f"{self.shape[1]} rows, on {self.values.device}."
            )
        if torch.promote_types(dense.dtype, self.values.dtype) != self.values.dtype:
            return self._in_float64 @ dense
        product: Tensor = _Product.apply(self, False, dense.to(self.values.dtype))  # type: ignore[no-untyped-call]
        return product.to(dense.dtype)


def _checked_shape(shape: tuple[int, int]) -> tuple[int, int]:
    if not isinstance(shape, tuple | list) or len(shape) != 2:
        raise UserError(f"SparseMatrix: shape={shape!r} must be the number of rows and of columns: pass two integers.")
    rows, columns = (check_count(SparseMatrix, f"shape[{dim}]", size, 0) for dim, size in enumerate(shape))
    return rows, columns


def _checked_index(name: str, index: Tensor, size: int) -> Tensor:
    """Returns indices in int64 after checking that each lies in [0, size)."""
    if not isinstance(index, Tensor) or index.dim() != 1:
        shape = list(index.shape) if isinstance(index, Tensor) else type(index).__name__
        raise UserError(f"SparseMatrix: {name} must be a tensor of shape [num_entries], not {shape}: reshape it.")
    if index.is_floating_point() or index.is_complex() or index.dtype == torch.bool:
        raise UserError(f"SparseMatrix: {name} has the dtype {index.dtype}: convert it to integers.")
    index = index.long()
    if len(index):
        least, greatest = (int(end) for end in index.aminmax())
        if least < 0 or greatest >= size:
            raise UserError(
                f"SparseMatrix: {name} holds {least if least < 0 else greatest}, but must lie in [0, {size}): count "
                "from 0, or enlarge shape."
            )
    return index


def _check_entries(row: Tensor, col: Tensor, values: Tensor) -> None:
    if not isinstance(values, Tensor) or not row.shape == col.shape == values.shape:
        shapes = [list(part.shape) if isinstance(part, Tensor) else type(part).__name__ for part in (row, col, values)]
        raise UserError(
            f"SparseMatrix: row, col and values have the shapes {', '.join(map(str, shapes))}: pass one of each for "
            "every entry."
        )
    if not row.device == col.device == values.device:
        raise UserError(
            f"SparseMatrix: row, col and values are on {row.device}, {col.device} and {values.device}: move them to "
            "one device."
        )


def _check_unique(row: Tensor, col: Tensor) -> None:
    """Checks that no two entries have the same place; the entries are sorted."""
    repeated = ((row[1:] == row[:-1]) & (col[1:] == col[:-1])).nonzero()
    if len(repeated):
        place = int(row[repeated[0]]), int(col[repeated[0]])
        raise UserError(f"SparseMatrix: there are two entries at {place}: add them up first.")


def _row_pointers(row: Tensor, num_rows: int) -> Tensor:
    """Returns the row pointers (``crow_indices``) of a CSR matrix."""
    counts = torch.bincount(row, minlength=num_rows)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


class _Pattern:
    """The sparsity pattern of a matrix in CSR form, and on demand that of its transpose."""

    def __init__(self, pointers: Tensor, col: Tensor, shape: tuple[int, int]) -> None:
        # 32-bit indices if possible: on a CPU, each product would convert 64-bit ones.
        fits = max(len(col), *shape) < 2**31
        self.pointers, self.col = (index.to(torch.int32 if fits else torch.int64) for index in (pointers, col))
        self.shape = shape

    @cached_property
    def order(self) -> Tensor:
        """The permutation that sorts the entries by column."""
        with torch.inference_mode(False):
            return torch.argsort(self.col, stable=True).to(self.col.dtype)

    @cached_property
    def transposed(self) -> "_Pattern":
        with torch.inference_mode(False):
            counts = self.pointers.diff()
            row = torch.arange(self.shape[0], dtype=self.col.dtype, device=counts.device).repeat_interleave(counts)
            return _Pattern(_row_pointers(self.col, self.shape[1]), row[self.order], (self.shape[1], self.shape[0]))

    def csr(self, values: Tensor) -> Tensor:
        with warnings.catch_warnings(), torch.inference_mode(False):
            warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
            # PyTorch 2.11 warns on a GPU even though the checks are disabled explicitly.
            warnings.filterwarnings("ignore", "Sparse invariant checks are implicitly disabled")
            return torch.sparse_csr_tensor(self.pointers, self.col, values, self.shape, check_invariants=False)


class _Product(torch.autograd.Function):
    """Sparse times dense, differentiable in the dense factor to any order."""

    # No setup_context: with one, PyTorch inspects the signature at every call.
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, transposed: bool, dense: Tensor) -> Tensor:
        ctx.matrix, ctx.transposed = matrix, transposed
        with torch.autocast(dense.device.type, enabled=False):  # CSR products have no low-precision kernel
            return (matrix._transposed if transposed else matrix._matrix) @ dense

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Any:
        return None, None, _Product.apply(ctx.matrix, not ctx.transposed, gradient)  # type: ignore[no-untyped-call]

    @staticmethod
    def jvp(ctx: Any, matrix: None, transposed: None, tangent: Tensor) -> Any:
        return _Product.apply(ctx.matrix, ctx.transposed, tangent)  # type: ignore[no-untyped-call]
