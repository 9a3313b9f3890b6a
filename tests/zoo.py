"""Fixed-point problems of many kinds, with their exact fixed points."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from rbp_lightning import Status

BATCH, SIZE = 3, 6


@dataclass(frozen=True)
class Problem:
    """A fixed-point problem in float64, with a batch of independent samples.

    Attributes:
        name: Its name.
        update: The map F.
        start: The initial state, of shape ``[batch, size]``.
        status: The status of Picard iteration.
        fixed_point: The limit of Picard iteration, up to rounding; ``None`` if it does not converge.
    """

    name: str
    update: Callable[[Tensor], Tensor]
    start: Tensor
    status: Status = Status.CONVERGED
    fixed_point: Tensor | None = None


def solve_dense(matrix: Tensor, right: Tensor) -> Tensor:
    """Solves a dense system by QR, since ``torch.linalg.solve`` returned wrong results with several threads."""
    orthogonal, triangular = torch.linalg.qr(matrix)
    return torch.linalg.solve_triangular(triangular, orthogonal.mT @ right[..., None], upper=True).squeeze(-1)


def newton(update: Callable[[Tensor], Tensor], start: Tensor, steps: int = 30) -> Tensor:
    """The fixed point near a state, by Newton's method with dense Jacobians."""
    flat = start.reshape(-1)

    def residual(point: Tensor) -> Tensor:
        return update(point.reshape(start.shape)).reshape(-1) - point

    for _ in range(steps):
        flat = flat - solve_dense(torch.autograd.functional.jacobian(residual, flat), residual(flat))
    return flat.reshape(start.shape)


def draw(*shape: int, seed: int) -> Tensor:
    """Standard normal numbers, the same on every default device."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64, device="cpu").to(torch.get_default_device())


def symmetric(radius: float, size: int = SIZE, seed: int = 0) -> Tensor:
    """A symmetric matrix whose largest eigenvalue and norm are ``radius``."""
    drawn = draw(size + 1, size, seed=seed)
    basis, values = torch.linalg.qr(drawn[1:])[0], radius * drawn[0].sin()
    values[0] = radius
    return basis * values @ basis.T


def drive(seed: int = 0) -> Tensor:
    """A random input for each sample."""
    return draw(BATCH, SIZE, seed=seed + 1000)


def zeros() -> Tensor:
    """The usual initial state."""
    return torch.zeros(BATCH, SIZE, dtype=torch.float64)


def affine(name: str, matrix: Tensor, status: Status = Status.CONVERGED) -> Problem:
    """h <- h W + x."""
    inputs = drive()
    exact = solve_dense(torch.eye(len(matrix), dtype=matrix.dtype) - matrix.T, inputs)
    return Problem(name, lambda h: h @ matrix + inputs, zeros(), status, exact if status is Status.CONVERGED else None)


def tanh(radius: float) -> Problem:
    """h <- tanh(h W + x); with small inputs its Jacobian is nearly W."""
    matrix, inputs = symmetric(radius), 0.02 * drive()

    def update(h: Tensor) -> Tensor:
        return torch.tanh(h @ matrix + inputs)

    state = zeros()
    for _ in range(5000):
        state = update(state)
    return Problem(f"tanh {radius}", update, zeros(), fixed_point=newton(update, state, 3))


def rotation(radius: float) -> Tensor:
    """Rotations of three planes by 1, 2 and 3 radians, times ``radius``, the modulus of all eigenvalues."""
    blocks = [
        torch.tensor([[0.0, -angle], [angle, 0.0]], dtype=torch.float64).matrix_exp() for angle in (1.0, 2.0, 3.0)
    ]
    return radius * torch.block_diag(*blocks)


def bistable() -> Problem:
    """h <- tanh(2 h) from near the unstable fixed point 0: the iterates grow at first, then converge."""
    signs = torch.where(drive() > 0, 1.0, -1.0).double()

    def update(h: Tensor) -> Tensor:
        return torch.tanh(2 * h)

    return Problem("bistable", update, 1e-6 * signs, fixed_point=newton(update, signs))


def contractions() -> list[Problem]:
    """Problems for which Picard iteration converges."""
    return [
        *(affine(f"linear {radius}", symmetric(radius)) for radius in (0.3, 0.9, 0.99)),
        *(tanh(radius) for radius in (0.3, 0.9, 0.99)),
        affine("rotation", rotation(0.9)),
        affine("non-normal", 0.5 * torch.eye(SIZE).double() + torch.diag(torch.ones(SIZE - 1), 1).double()),
        Problem("nilpotent", (nilpotent := affine("", torch.diag(torch.full((SIZE - 1,), 2.0), 1).double())).update,
                zeros(), fixed_point=nilpotent.fixed_point),
        bistable(),
        Problem("at zero", lambda h: 0.5 * torch.tanh(h), 0.1 * drive(), fixed_point=zeros()),
    ]  # fmt: skip


def failures() -> list[Problem]:
    """Problems for which Picard iteration fails."""
    quarter_turn = torch.block_diag(*[torch.tensor([[0.0, 1.0], [-1.0, 0.0]], dtype=torch.float64)] * 3)
    inputs = drive()
    return [
        Problem("limit cycle", lambda h: h @ quarter_turn, 1 + zeros(), Status.MAX_STEPS),
        affine("expanding", symmetric(1.1), Status.DIVERGED),
        affine("expanding rotation", rotation(1.1), Status.DIVERGED),
        Problem("overflowing", lambda h: h.square() + 2, zeros(), Status.DIVERGED),
        Problem("NaN", lambda h: h * float("nan") + inputs, zeros(), Status.NAN),
        Problem("infinite", lambda h: h + float("inf"), zeros(), Status.NAN),
    ]


CONTRACTIONS = contractions()
FAILURES = failures()
ALL = CONTRACTIONS + FAILURES


def named(name: str) -> Problem:
    """The problem with a name."""
    return next(problem for problem in ALL if problem.name == name)
