"""Rounding errors of a reversible scheme that is run backwards."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import Tensor

from benchmarks.report import markdown, write_csv

SIZE, SAMPLES, RADIUS = 64, 16, 0.9

Pair: TypeAlias = tuple[Tensor, Tensor]
"""The two coupled states."""


FIGURES = {
    "relative residual": ("residual", "float64"),
    "worst error of a state run backwards, float32": ("state", "float32"),
    "worst error of a state run backwards, float64": ("state", "float64"),
    "relative error of the gradient, float32": ("gradient", "float32"),
    "relative error of the gradient, float64": ("gradient", "float64"),
}
"""The rows of the table, with the figure and the dtype of each."""


def reversible(
    steps: list[int] = [5, 10, 20, 40], damping: float = 0.5, seed: int = 0, out: Path = Path("logs/reversible")
) -> None:
    """Rounding errors of a reversible scheme run backwards (McCallum et al., Reversible deep equilibrium models).

    The steps are y <- (1 - b) y + b F(x), then x <- (1 - b) x + b F(y), on a tanh network of 64 units with spectral
    radius 0.9. Backwards they divide by 1 - b, which amplifies rounding errors. Prints, for each number of steps, the
    residual after them, the worst relative error of a state that was recovered backwards, and the resulting error of
    the gradient, in float32 and float64. Writes a CSV file.

    Args:
        steps: Numbers of steps.
        damping: b, above 0 and below 1.
        seed: Seed of the network.
        out: Folder to write to.
    """
    rows = []
    for dtype in (torch.float32, torch.float64):
        for count in steps:
            residual, state, gradient = run(count, damping, dtype, seed)
            figures = {"residual": residual, "state": state, "gradient": gradient}
            rows.append({"dtype": str(dtype).removeprefix("torch."), "damping": damping, "steps": count, **figures})
    write_csv(out / "reversible.csv", rows)
    print(table(rows))


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the figures as Markdown: a row for each figure and dtype, and a column for each number of steps.

    Args:
        rows: Rows of the CSV file.
    """
    damping, counts = rows[0]["damping"], dict.fromkeys(row["steps"] for row in rows)
    lines = [
        [name, *(f"{float(row[figure]):.0e}" for row in rows if row["dtype"] == dtype)]
        for name, (figure, dtype) in FIGURES.items()
    ]
    return markdown([f"steps, b = {damping}, spectral radius {RADIUS}", *counts], lines)


def run(steps: int, damping: float, dtype: torch.dtype, seed: int) -> tuple[float, float, float]:
    """Returns the residual, the worst error of a state and the error of the gradient, all relative.

    Args:
        steps: Number of steps, forwards and then backwards.
        damping: b.
        dtype: Floating-point dtype.
        seed: Seed of the network.

    Example:
        >>> residual, worst, error = run(5, 0.5, torch.float64, 0)
        >>> worst < 1e-12 and error < 1e-12
        True
    """
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    weight = (RADIUS * weight / torch.linalg.eigvals(weight).abs().max()).to(dtype).requires_grad_()
    drive = 0.1 * torch.randn(SAMPLES, SIZE, generator=generator, dtype=torch.float64).to(dtype)

    def update(h: Tensor) -> Tensor:
        return torch.tanh(h @ weight + drive)

    pairs: list[Pair] = [(torch.zeros_like(drive), torch.zeros_like(drive))]
    for _ in range(steps):
        pairs.append(_forward(update, pairs[-1], damping))
    exact = torch.autograd.grad(pairs[-1][0].square().sum(), weight, retain_graph=True)[0]
    last = pairs[-1][0].detach()
    residual = (update(last) - last).norm() / last.norm()

    found, worst = torch.zeros_like(weight), 0.0
    x, y = (one.detach() for one in pairs[-1])
    cotangents = [2 * x, torch.zeros_like(x)]
    for before in reversed(pairs[:-1]):
        x, y = _backward(update, (x, y), damping)
        size = max(float(one.detach().norm()) for one in before) or 1.0
        errors = [float((one - other.detach()).norm()) / size for one, other in zip((x, y), before, strict=True)]
        worst = max(worst, *errors)
        inputs = x.requires_grad_(), y.requires_grad_()
        outputs = _forward(update, inputs, damping)
        *cotangents, change = torch.autograd.grad(outputs, [*inputs, weight], cotangents)
        found += change
        x, y = x.detach(), y.detach()
    return float(residual.detach()), worst, float((found - exact).norm() / exact.norm())


def _forward(update: Callable[[Tensor], Tensor], pair: Pair, damping: float) -> Pair:
    x, y = pair
    y = (1 - damping) * y + damping * update(x)
    return (1 - damping) * x + damping * update(y), y


@torch.no_grad()
def _backward(update: Callable[[Tensor], Tensor], pair: Pair, damping: float) -> Pair:
    x, y = pair
    x = (x - damping * update(y)) / (1 - damping)
    return x, (y - damping * update(x)) / (1 - damping)
