"""Solving dense systems that may be singular."""

import torch
from torch import Tensor


def back_substitution(triangular: Tensor, right: Tensor) -> Tensor:
    """Solves R x = b, with 0 for the unknowns whose pivot is rounding: of a singular R nothing infinite comes.

    Args:
        triangular: Upper triangular matrices, ``[*batch, size, size]``; what is below the diagonal is not read.
        right: Right-hand sides, ``[*batch, size]``.

    Example:
        >>> back_substitution(torch.tensor([[2.0, 1.0], [0.0, 0.0]]), torch.tensor([4.0, 1.0]))
        tensor([2., 0.])
    """
    triangular = triangular.clone()
    pivots = triangular.diagonal(dim1=-2, dim2=-1)
    sizes = pivots.abs()
    rounding = 10 * torch.finfo(pivots.dtype).eps * sizes.amax(dim=-1, keepdim=True)
    pivots.masked_fill_(sizes <= rounding, float("inf"))
    solution: Tensor = torch.linalg.solve_triangular(triangular, right[..., None], upper=True)
    return solution.squeeze(-1)


def solve_by_qr(matrix: Tensor, right: Tensor) -> Tensor:
    """Solves A x = b by a QR decomposition.

    ``torch.linalg.solve`` was seen wrong on a CPU with several threads from some 160 unknowns on (PyTorch 2.13).

    Args:
        matrix: Square matrices, ``[*batch, size, size]``.
        right: Right-hand sides, ``[*batch, size]``.

    Example:
        >>> solve_by_qr(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([4.0, 1.0]))
        tensor([1., 2.])
    """
    orthogonal, triangular = torch.linalg.qr(matrix)
    return back_substitution(triangular, (orthogonal.mT @ right[..., None]).squeeze(-1))
