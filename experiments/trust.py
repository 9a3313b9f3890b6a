"""When a gradient can be trusted."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from jsonargparse.typing import PositiveInt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from benchmarks.report import markdown
from rbp_lightning import (
    BPTT,
    CGRBP,
    RBP,
    TBPTT,
    AdaptiveNeumann,
    ConvergenceWarning,
    GradientEstimator,
    NeumannRBP,
    Picard,
)

SIZE = 32
SOLVER = Picard(max_steps=2000, tol=1e-6)
ESTIMATORS: dict[str, Callable[[], GradientEstimator]] = {
    "BPTT": lambda: BPTT(SOLVER),
    "TBPTT(20)": lambda: TBPTT(20, SOLVER),
    "RBP(20)": lambda: RBP(20, solver=SOLVER),
    "NeumannRBP(20)": lambda: NeumannRBP(20, SOLVER),
    "CGRBP(20)": lambda: CGRBP(20, solver=SOLVER),
    "AdaptiveNeumann(1e-3)": lambda: AdaptiveNeumann(1e-3, solver=SOLVER),
}


def matrix(radius: float, seed: int = 0) -> Tensor:
    """A random symmetric matrix with a given spectral radius, float64 and of shape ``[SIZE, SIZE]``."""
    generator = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64))[0]
    values = torch.linspace(-0.5, 1, SIZE, dtype=torch.float64) * radius
    return basis @ torch.diag(values) @ basis.T


@dataclass(frozen=True)
class Trial:
    """The gradient by an estimator.

    Attributes:
        error: Relative error; NaN if there is no fixed point to compare with.
        told: Whether the estimator warned.
    """

    error: float
    told: bool


def trial(estimator: GradientEstimator, radius: float) -> Trial:
    """Compares the gradient with respect to the weights of h <- W h + x with the exact one."""
    weight = matrix(radius).requires_grad_()
    drive = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        state = estimator(lambda h: weight @ h + drive, torch.zeros(SIZE, dtype=torch.float64)).state
        (found,) = torch.autograd.grad(state.sum(), weight)
    told = any(issubclass(warning.category, ConvergenceWarning) for warning in caught)
    if radius >= 1:
        return Trial(float("nan"), told)
    system = torch.eye(SIZE, dtype=torch.float64) - weight.detach()
    factor = torch.linalg.cholesky(system)  # symmetric
    fixed_point = torch.cholesky_solve(drive[:, None], factor)
    adjoint = torch.cholesky_solve(torch.ones(SIZE, 1, dtype=torch.float64), factor)
    exact = adjoint @ fixed_point.T
    return Trial(float((found - exact).norm() / exact.norm()), told)


def draw_errors(axes: Axes, radii: Sequence[float]) -> list[list[str]]:
    """Plots the errors against the spectral radius, and returns the rows of a table."""
    rows = []
    for name, make in ESTIMATORS.items():
        trials = [trial(make(), radius) for radius in radii]
        (line,) = axes.plot(radii, [one.error for one in trials], ".-", label=name)
        told = [(radius, one.error) for radius, one in zip(radii, trials, strict=True) if one.told]
        axes.plot(*zip(*told, strict=True), "o", fillstyle="none", color=line.get_color())
        cells = [("" if one.error != one.error else f"{one.error:.0e} ") + ("(warned)" * one.told) for one in trials]
        rows.append([name, *cells])
    axes.set_yscale("log")
    axes.set_xlabel("spectral radius of J")
    axes.set_ylabel("relative error of the gradient")
    axes.set_title("ringed: the estimator says so")
    axes.legend(fontsize=7)
    return rows


def draw_residuals(axes: Axes, steps: int) -> None:
    """Plots the forward residual of updates that converge and of updates that do not."""
    drive = torch.linspace(-1, 1, SIZE, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    wild = torch.randn(SIZE, SIZE, generator=generator, dtype=torch.float64)
    turn = torch.block_diag(*[torch.tensor([[0.0, -1.5], [1.5, 0.0]], dtype=torch.float64)] * (SIZE // 2))
    updates: dict[str, Callable[[Tensor], Tensor]] = {
        "spectral radius 0.8": lambda h: matrix(0.8) @ h + drive,
        "spectral radius 0.97": lambda h: matrix(0.97) @ h + drive,
        "limit cycle": lambda h: torch.tanh(turn @ h + 0.1 * drive),
        "chaos": lambda h: torch.tanh(wild @ h + 0.1 * drive),
        "spectral radius 1.05": lambda h: matrix(1.05) @ h + drive,
    }
    for name, update in updates.items():
        state, residuals = torch.full((SIZE,), 0.1, dtype=torch.float64), []
        for _ in range(steps):
            previous, state = state, update(state)
            residuals.append(float((state - previous).norm() / state.norm()))
        axes.semilogy(range(1, steps + 1), residuals, label=name)
    axes.set_xlabel("step")
    axes.set_ylabel("relative residual of the forward solve")
    axes.set_ylim(bottom=1e-12)
    axes.set_title("what converges, and what does not")
    axes.legend(fontsize=7)


def draw_hidden_mode(axes: Axes, products: int) -> None:
    """Plots last term, error and bound of a series whose gradient has almost no part in the slowest mode."""
    rates = torch.tensor([0.3, 0.99], dtype=torch.float64)
    gradient = torch.tensor([1.0, 1e-2], dtype=torch.float64)
    powers = rates ** torch.arange(products + 1, dtype=torch.float64)[:, None]
    terms = powers * gradient
    sums = terms.cumsum(0)
    exact = gradient / (1 - rates)
    last = terms.norm(dim=1)
    left_out = last * rates.max() / (1 - rates.max())
    known = sums.norm(dim=1) - left_out
    bound = torch.where(known > 0, left_out / known, torch.nan)
    axes.semilogy(last / last[0], label="last term of the series")
    axes.semilogy((sums - exact).norm(dim=1) / exact.norm(), label="true relative error")
    axes.semilogy(bound, "--", label="AdaptiveNeumann's bound")
    axes.set_xlabel("products with J^T")
    axes.set_title("a slow mode that the gradient hardly touches")
    axes.legend(fontsize=7)


def trust(
    radii: list[float] = [0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 1.0, 1.05],
    steps: PositiveInt = 200,
    png: Path = Path("logs/trust.png"),
) -> None:
    """When a gradient can be trusted.

    Computes the gradient of a linear network with each estimator, in float64, while the spectral radius of its Jacobian
    is varied across 1, and compares it with the dense solution. The first panel shows the errors, with a ring where the
    estimator warned. The second shows residuals of updates that converge, rotate, are chaotic or diverge. The third
    shows a gradient with almost no part in the slowest mode, whose error only a bound reveals. Prints the errors as a
    table, in which "warned" marks a warning.

    Args:
        radii: Spectral radii in the first panel.
        steps: Number of steps in the second panel; the third has twice as many products.
        png: Path of the picture.
    """
    figure = Figure(figsize=(13, 3.8), layout="constrained")
    panels = figure.subplots(1, 3)
    rows = draw_errors(panels[0], radii)
    draw_residuals(panels[1], steps)
    draw_hidden_mode(panels[2], 2 * steps)
    print(markdown(["spectral radius", *(f"{radius:g}" for radius in radii)], rows))
    png.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(png, dpi=110)
    print(f"Picture: {png}")
