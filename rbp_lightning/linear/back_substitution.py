"""Solves dense linear systems that may be singular."""

import torch
from torch import Tensor


def back_substitution(triangular: Tensor, right: Tensor) -> Tensor:
    """Solves R x = b; unknowns whose pivot is 0 up to rounding are set to 0, so that a singular R gives finite results.

    Args:
        triangular: Upper triangular matrices, ``[*batch, size, size]``; the part below the diagonal is not read.
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

    ``torch.linalg.solve`` returned wrong results on a CPU with several threads for 160 or more unknowns (PyTorch 2.13).

    Args:
        matrix: Square matrices, ``[*batch, size, size]``.
        right: Right-hand sides, ``[*batch, size]``.

    Example:
        >>> solve_by_qr(torch.tensor([[0.0, 2.0], [1.0, 0.0]]), torch.tensor([4.0, 1.0]))
        tensor([1., 2.])
    """
    orthogonal, triangular = torch.linalg.qr(matrix)
    return back_substitution(triangular, (orthogonal.mT @ right[..., None]).squeeze(-1))
