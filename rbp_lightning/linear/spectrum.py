"""Estimates the spectral radius of the Jacobian, and bounds its norm."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from rbp_lightning.agreement import everywhere, largest_of
from rbp_lightning.errors import check_count, check_instance, check_number, check_seed
from rbp_lightning.linear.jacobian import JacobianOperator

TEST_EVERY = 5
"""Number of steps between two tests of whether to stop bounding the norm."""


@dataclass(frozen=True)
class SpectralRadius:
    """An estimate of the spectral radius of J.

    Attributes:
        value: The estimate for each sample.
        residual: ||J^T v - lambda v|| for each sample, with the unit Ritz vector v; small once the estimate converged.
    """

    value: Tensor
    residual: Tensor


def spectral_radius(
    operator: JacobianOperator, steps: int = 10, krylov_steps: int = 20, seed: int = 0
) -> SpectralRadius:
    """Estimates the spectral radius of J by power iteration and Arnoldi's method.

    Power iteration alone does not converge for a complex pair of eigenvalues, and appears to converge too early near a
    cluster. Its last vector is therefore the start of a Krylov space, whose largest Ritz value is the estimate (Saad,
    Numerical Methods for Large Eigenvalue Problems, 2nd edition, sections 4.1 and 6.2).

    Args:
        operator: Products with J^T.
        steps: Number of steps of power iteration, at least 0, of one product each.
        krylov_steps: Dimension of the Krylov space, at least 1; it takes as many products and stored vectors.
        seed: Seed of the random initial vector.

    Returns:
        The estimate, of the shape of the batch dimensions.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> turn = torch.tensor([[0.0, -0.9], [0.9, 0.0]])  # eigenvalues 0.9 i and -0.9 i
        >>> spectral_radius(JacobianOperator.at(lambda h: turn @ h, torch.zeros(2), batch_dims=0)).value
        tensor(0.9000)
    """
    check_instance(spectral_radius, "operator", operator, JacobianOperator, "JacobianOperator.at(update, state, ...)")
    steps = check_count(spectral_radius, "steps", steps, 0)
    krylov_steps = check_count(spectral_radius, "krylov_steps", krylov_steps, 1)
    seed = check_seed(spectral_radius, "seed", seed)
    vector = operator.random_unit_vector(seed)
    for _ in range(steps):
        _, vector = _normalized(operator.flat_vjp(vector))
    return _arnoldi(operator, vector, largest_of(min(krylov_steps, operator.size)))


def _arnoldi(operator: JacobianOperator, vector: Tensor, steps: int) -> SpectralRadius:
    basis = vector[..., None, :]  # [*batch, k, size]
    hessenberg = torch.zeros(*operator.batch_shape, steps + 1, steps, dtype=vector.dtype, device=vector.device)
    for step in range(steps):
        product = operator.flat_vjp(basis[..., step, :])
        scale = product.norm(dim=-1, keepdim=True)
        for _ in range(2):  # a single pass loses orthogonality to rounding
            overlap = (basis @ product[..., None]).squeeze(-1)
            product = product - (overlap[..., None, :] @ basis).squeeze(-2)
            hessenberg[..., : step + 1, step] += overlap
        left = product.norm(dim=-1, keepdim=True)
        # If the space is invariant, the remaining vector is only rounding error.
        left = torch.where(left > 10 * torch.finfo(left.dtype).eps * scale, left, 0)
        hessenberg[..., step + 1, step] = left.squeeze(-1)
        following = torch.where(left > 0, product / left, 0)
        basis = torch.cat([basis, following[..., None, :]], dim=-2)
    hessenberg = hessenberg.double().cpu()
    finite = hessenberg.isfinite().all(-1).all(-1)
    values, vectors = torch.linalg.eig(torch.where(finite[..., None, None], hessenberg, 0)[..., :steps, :])
    size, index = values.abs().max(dim=-1)
    last = vectors[..., -1, :].abs().gather(-1, index[..., None]).squeeze(-1)
    size = torch.where(finite, size, float("nan"))
    residual = hessenberg[..., steps, steps - 1] * last
    return SpectralRadius(*(figure.to(vector) for figure in (size, residual)))


@dataclass(frozen=True)
class NormBounds:
    """Lower and upper bounds on the spectral norm ||J||.

    Attributes:
        lower: Lower bound for each sample, which is also an estimate.
        upper: Upper bound for each sample, up to the failure probability; infinite if there is none.
    """

    lower: Tensor
    upper: Tensor


def norm_bounds(
    operator: JacobianOperator,
    steps: int = 10,
    failure_probability: float = 1e-6,
    seed: int = 0,
    stop_early: bool = False,
) -> NormBounds:
    """Bounds the spectral norm of J by Golub-Kahan bidiagonalisation from a random vector.

    The largest singular value of the bidiagonal matrix is a lower bound. The upper bound holds with high probability
    over the random vector: the method is Lanczos' method for J^T J, which after k steps approximates the largest
    eigenvalue of a positive semidefinite n x n matrix to a relative error of e, except with a probability of at most
    1.648 sqrt(n) exp(-sqrt(e) (2 k - 1)) (Kuczynski and Wozniakowski, SIAM J. Matrix Anal. Appl. 13(4), 1992,
    theorem 4.2).

    Args:
        operator: Products with J and J^T.
        steps: Maximum number of steps k, at least 1, each of one product with J and one with J^T.
        failure_probability: Probability that the upper bound of any sample does not hold.
        seed: Seed of the random vector.
        stop_early: Whether to stop once every sample is decided: its lower bound is at least 1, or the distance of its
            upper bound from 1 is at least half of that of its lower bound. This is tested every five steps, and the
            tests share ``failure_probability``.

    Returns:
        The bounds, of the shape of the batch dimensions.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> slopes = torch.tensor([0.5, -0.7, 0.2])
        >>> bounds = norm_bounds(JacobianOperator.at(lambda h: slopes * h, torch.zeros(3), batch_dims=0), steps=20)
        >>> bounds.lower, bounds.upper
        (tensor(0.7000), tensor(0.7572))
    """
    check_instance(norm_bounds, "operator", operator, JacobianOperator, "JacobianOperator.at(update, state, ...)")
    steps = check_count(norm_bounds, "steps", steps, 1)
    check_number(norm_bounds, "failure_probability", failure_probability, 0.0, 1.0, low_allowed=False)
    seed = check_seed(norm_bounds, "seed", seed)
    tests = math.ceil(steps / TEST_EVERY) if stop_early else 1
    right = operator.random_unit_vector(seed)
    left = beta = torch.zeros(())
    diagonal: list[Tensor] = []
    above: list[Tensor] = []
    for step in range(1, steps + 1):
        left = operator.flat_jvp(right) - beta * left
        alpha, left = _normalized(left)
        diagonal.append(alpha.squeeze(-1))
        last = step == steps
        if last or (stop_early and step % TEST_EVERY == 0):
            lower = _largest_singular_value(diagonal, above)
            chances = tests * lower.numel()
            excess = math.log(1.648 * operator.size**0.5 * chances) - math.log(failure_probability)
            gap = (excess / (2 * step - 1)) ** 2
            upper = lower / math.sqrt(1 - gap) if gap < 1 else torch.full_like(lower, float("inf"))
            decided = (lower >= 1) | (1 - upper >= (1 - lower) / 2)
            if last or everywhere(decided.all()):
                break
        right = operator.flat_vjp(left) - alpha * right
        beta, right = _normalized(right)
        above.append(beta.squeeze(-1))
    return NormBounds(lower, upper)


def _normalized(vector: Tensor) -> tuple[Tensor, Tensor]:
    size = vector.norm(dim=-1, keepdim=True)
    return size, torch.where(size > 0, vector / size, 0)


def _largest_singular_value(diagonal: list[Tensor], above: list[Tensor]) -> Tensor:
    matrix = torch.diag_embed(torch.stack(diagonal, -1))
    if above:
        matrix = matrix + torch.diag_embed(torch.stack(above, -1), offset=1)
    wide = matrix.double().cpu()
    finite = wide.isfinite().all(-1).all(-1)
    largest = torch.linalg.svdvals(torch.where(finite[..., None, None], wide, 0))[..., 0]
    return torch.where(finite, largest, float("nan")).to(matrix)
