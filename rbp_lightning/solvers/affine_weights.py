"""Weights of the affine combination of residuals with the smallest norm."""

import functools

import torch
from torch import Tensor

REGULARIZATION = 10
"""Default regularisation: what is added to the diagonal of the Gram matrix, relative to it, in units of epsilon."""


def affine_weights(gram: Tensor, newest: int, regularization: float) -> Tensor:
    """Weights c with sum 1 that minimise ||c_1 u_1 + ... + c_q u_q||, per sample.

    They are proportional to the solution of G c = 1 (Lagrange multipliers), which is found by a Cholesky decomposition:
    its rounding errors do not depend on the scale of the u_j. If G is not finite and positive definite, such as when a
    u_j is 0, all weight is on the newest u.

    Args:
        gram: Inner products G_ij = u_i . u_j, ``[*batch, q, q]``, in float32 or wider. An infinite diagonal element in
            a row and column of zeros excludes a u_j.
        newest: Index of the newest u.
        regularization: What is added to the diagonal, relative to it.

    Returns:
        The weights, ``[*batch, q]``.

    Example:
        >>> vectors = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
        >>> affine_weights(vectors @ vectors.T, newest=1, regularization=1e-6)
        tensor([0.3333, 0.6667])
    """
    # Tensors of a compiled graph must not be cached.
    constants = _new_constants if torch.compiler.is_compiling() else _constants
    factors, ones, alone = constants(gram.shape[-1], newest, regularization, gram.dtype, gram.device)
    triangle, info = torch.linalg.cholesky_ex(gram * factors)
    weights = torch.cholesky_solve(ones.expand(*gram.shape[:-1], 1), triangle).squeeze(-1)
    total = weights.sum(-1, keepdim=True)
    sound = 0 * total == info[..., None]  # total is finite and info is 0
    return torch.where(sound, weights / total, alone)


def _new_constants(
    count: int, newest: int, added: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    """Factors that regularise the matrix, the right-hand side, and the weights that select the newest u."""
    identity = torch.eye(count, dtype=dtype, device=device)
    return 1 + added * identity, identity.new_ones(count, 1), identity[newest].clone()


@functools.lru_cache(maxsize=256)
def _constants(
    count: int, newest: int, added: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(False):
        return _new_constants(count, newest, added, dtype, device)
