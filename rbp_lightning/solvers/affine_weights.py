"""The affine combination of some residuals that is least."""

import functools

import torch
from torch import Tensor

REGULARIZATION = 10
"""What is added to the diagonal of a Gram matrix, relative to it, in units of the precision."""


def affine_weights(gram: Tensor, newest: int, regularization: float) -> Tensor:
    """Weights c with sum 1 that minimise ||c_1 u_1 + ... + c_q u_q||, per sample.

    By Lagrange they are proportional to the solution of G c = 1, by Cholesky's method, whose rounding errors do not
    depend on the scale of each u_j. Where G is no positive definite matrix of finite numbers, as where a u_j is 0, the
    newest u is taken.

    Args:
        gram: Inner products G_ij = u_i . u_j, ``[*batch, q, q]``, in float32 or wider. A u_j is left out by an infinite
            diagonal element in a row and column of zeros.
        newest: Index of the newest u.
        regularization: What is added to the diagonal, relative to it.

    Returns:
        The weights, ``[*batch, q]``.

    Example:
        >>> vectors = torch.tensor([[2.0, 0.0], [-1.0, 0.0]])
        >>> affine_weights(vectors @ vectors.T, newest=1, regularization=1e-6)
        tensor([0.3333, 0.6667])
    """
    # A graph's tensors are not to be kept.
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
    """Factors of the regularised matrix, ones, and the weights of the newest u alone."""
    identity = torch.eye(count, dtype=dtype, device=device)
    return 1 + added * identity, identity.new_ones(count, 1), identity[newest].clone()


@functools.lru_cache(maxsize=256)
def _constants(
    count: int, newest: int, added: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    with torch.inference_mode(False):
        return _new_constants(count, newest, added, dtype, device)
