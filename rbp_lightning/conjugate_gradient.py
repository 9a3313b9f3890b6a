"""Conjugate gradients for the adjoint equation."""

from dataclasses import dataclass

import torch
from torch import Tensor

from rbp_lightning.linalg import Linearization
from rbp_lightning.looks import Looks
from rbp_lightning.pytree import Vector, inner, minus, norm, plus, scaled, share


@dataclass(frozen=True)
class LinearSolution:
    """Result of solving (I - J^T) z = g.

    Attributes:
        vector: Leaves of the newest z.
        steps: Steps taken.
        residual: ||g - (I - J^T) z|| / ||g||, one value for each sample.
    """

    vector: Vector
    steps: int
    residual: Tensor


def conjugate_gradient(
    linearization: Linearization,
    gradient: Vector,
    steps: int,
    tol: float,
    check_every: int,
    start: Vector | None = None,
) -> LinearSolution:
    """Solves (I - J^T) z = g by conjugate gradients on its normal equations.

    This is the CGLS form (Bjorck, Numerical Methods for Least Squares Problems, 1996, algorithm 7.4.1), which
    recurs the residual of the equation itself instead of the normal equations' one: it loses fewer digits, and the
    residual falls with every step. Samples advance side by side, each with its own step lengths, and rest once they
    have converged.

    Args:
        linearization: Products with J and J^T.
        gradient: Leaves of g.
        steps: Most steps, each of one product with J and one with J^T.
        tol: Residual over the norm of g at which a sample has converged, and comes to rest at 0.9 of it; 0 runs
            exactly ``steps``.
        check_every: Steps between two looks at the residual, as ``Picard``'s.
        start: Leaves of the first z; ``None`` is zero.

    Returns:
        The newest iterate, with its residual.

    Example:
        >>> state = torch.tensor([1.0, 2.0], requires_grad=True)
        >>> halves = Linearization(lambda h: 0.5 * h, state, [0.5 * state], batch_dims=0)
        >>> conjugate_gradient(halves, [torch.ones(2)], steps=5, tol=1e-6, check_every=1)
        LinearSolution(vector=[tensor([2., 2.])], steps=1, residual=tensor(0.))
    """
    batch_dims = linearization.batch_dims
    jvp = linearization.jvp_function()
    solution: Vector = [torch.zeros_like(leaf) for leaf in gradient] if start is None else start
    residual = gradient if start is None else minus(gradient, minus(start, linearization.vjp(start)))
    direction = normal = minus(residual, jvp(residual))
    normal_square = inner(normal, normal, batch_dims)
    size = norm(gradient, batch_dims)
    left = norm(residual, batch_dims)
    # What is recurred and what is true differ by rounding, which must not decide whether a sample has converged; beyond
    # rounding there is nothing to divide by.
    rest = max(0.9 * tol, linearization.epsilon)
    limit = rest * size
    looks = Looks(check_every, rest if tol > 0 else 0.0)
    for step in range(1, steps + 1):
        image = minus(direction, linearization.vjp(direction))
        image_square = inner(image, image, batch_dims)
        # Not ``>``: a sample with NaN has to keep it.
        active = ~(left <= limit) & (image_square != 0)
        length = torch.where(active, normal_square / image_square, 0)
        solution = plus(solution, scaled(length, direction))
        residual = minus(residual, scaled(length, image))
        left = norm(residual, batch_dims)
        if step == steps or (looks.due(step) and looks.finished(step, share(left, size))):
            break
        normal = minus(residual, jvp(residual))
        previous_square, normal_square = normal_square, inner(normal, normal, batch_dims)
        ratio = torch.where(previous_square != 0, normal_square / previous_square, 0)
        direction = plus(normal, scaled(ratio, direction))
    # What was recurred does not know of rounding.
    return LinearSolution(solution, step, linearization.adjoint_residual(gradient, solution))
