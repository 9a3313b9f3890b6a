"""Accuracy and cost of each estimator's gradient."""

import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat
from matplotlib.figure import Figure

from benchmarks.peak_memory import peak_bytes
from benchmarks.peers.cases import CaseName, make_case
from benchmarks.peers.networks import Case
from benchmarks.report import markdown, write_csv
from rbp_lightning import (
    BPTT,
    CGRBP,
    GMRES,
    JFB,
    RBP,
    SHINE,
    TBPTT,
    AdaptiveNeumann,
    Auto,
    Broyden,
    CheckpointedBPTT,
    ConvergenceWarning,
    ExactAdjoint,
    FixedPoint,
    GradientEstimator,
    Implicit,
    NeumannRBP,
    PhantomGradient,
    Picard,
    ignoring,
)

MOST = 20_000
"""Step limit of a forward solve, more than any takes."""

ESTIMATORS: dict[str, Callable[[float], GradientEstimator]] = {
    "JFB": lambda tol: JFB(Auto(MOST, tol)),
    "PhantomGradient(5, 0.5)": lambda tol: PhantomGradient(5, 0.5, Auto(MOST, tol)),
    "NeumannRBP(5)": lambda tol: NeumannRBP(5, Auto(MOST, tol)),
    "NeumannRBP(20)": lambda tol: NeumannRBP(20, Auto(MOST, tol)),
    "TBPTT(20)": lambda tol: TBPTT(20, Auto(MOST, tol)),
    "SHINE(0)": lambda tol: SHINE(0, solver=Broyden(MOST, tol)),
    "SHINE(5)": lambda tol: SHINE(5, solver=Broyden(MOST, tol)),
    "SHINE(20)": lambda tol: SHINE(20, solver=Broyden(MOST, tol)),
    "RBP(20)": lambda tol: RBP(20, 0.0, solver=Auto(MOST, tol)),
    "CGRBP(20)": lambda tol: CGRBP(20, 0.0, solver=Auto(MOST, tol)),
    "Implicit()": lambda tol: Implicit(solver=Auto(MOST, tol)),
    "Implicit(GMRES())": lambda tol: Implicit(GMRES(MOST), Auto(MOST, tol)),
    "AdaptiveNeumann()": lambda tol: AdaptiveNeumann(max_steps=MOST, solver=Auto(MOST, tol)),
    "ExactAdjoint()": lambda tol: ExactAdjoint(solver=Auto(MOST, tol)),
    "BPTT": lambda tol: BPTT(Picard(MOST, tol)),
    "CheckpointedBPTT": lambda tol: CheckpointedBPTT(Picard(MOST, tol)),
}


@dataclass(frozen=True)
class Worth:
    """The figures of an estimator on one network.

    Attributes:
        error: Relative error of the gradient.
        forward: How often F was applied in the solve.
        again: How often F was applied in the backward pass.
        products: Products with J^T and J; a step on the tape counts as one.
        states: Peak memory, in states.
    """

    error: float
    forward: int
    again: int
    products: int
    states: float


class _Counted:
    """An update that counts its applications."""

    def __init__(self, update: Callable[[Any], Any]) -> None:
        self.update, self.count = update, 0

    def __call__(self, state: Any) -> Any:
        self.count += 1
        return self.update(state)


def gradient_by(case: Case, estimator: GradientEstimator) -> tuple[torch.Tensor, FixedPoint, int, int]:
    """Computes a gradient, and counts applications of F in the solve and in the backward pass.

    Args:
        case: The network.
        estimator: The estimator.
    """
    prepared = tuple(one.detach().requires_grad_() for one in case.prepare(*case.parameters))
    update = _Counted(case.update(prepared))
    fixed_point = estimator(update, case.start, batch_dims=case.batch_dims)
    forward = fixed_point.steps
    before = update.count
    found = torch.autograd.grad(case.loss(fixed_point.state), prepared)
    return torch.cat([one.flatten() for one in found]), fixed_point, forward, update.count - before


def worth(case: Case, estimator: GradientEstimator, exact: torch.Tensor) -> Worth:
    """Measures an estimator.

    Args:
        case: The network.
        estimator: The estimator.
        exact: The exact gradient.
    """
    found, fixed_point, forward, again = gradient_by(case, estimator)
    adjoint = fixed_point.adjoint
    products = forward if adjoint is None else adjoint.products + 1  # the one into the parameters
    peak = peak_bytes(lambda: gradient_by(case, estimator), case.start.device)
    states = peak / (case.start.numel() * case.start.element_size())
    return Worth(float((found - exact).norm() / exact.norm()), forward, again, products, states)


def gradients(
    cases: list[CaseName] = ["tanh, radius 0.38", "tanh, radius 0.93", "tanh, radius 0.99"],
    tol: PositiveFloat = 1e-6,
    out: Path = Path("logs/gradients"),
) -> None:
    """Accuracy and cost of each estimator's gradient: its error, applications of F and products, and memory.

    The errors are relative to the exact gradient in float64; nothing is timed. Writes a CSV file, a table and a
    picture.

    Args:
        cases: Networks to differentiate.
        tol: Relative residual of the forward solve.
        out: Folder to write to.
    """
    measured: dict[str, dict[str, Worth]] = {name: {} for name in ESTIMATORS}
    with ignoring(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name in cases:
            case = make_case(name, torch.float64)
            exact = gradient_by(case, Implicit(GMRES(MOST, 1e-13, restart=200), Auto(MOST, 1e-14)))[0]
            for one, make in ESTIMATORS.items():
                measured[one][name] = worth(case, make(tol), exact)
            print(f"{name}: done", flush=True)
    rows = [
        {"estimator": one, "case": name, **vars(figures)}
        for one, by_case in measured.items()
        for name, figures in by_case.items()
    ]
    write_csv(out / "gradients.csv", rows)
    draw(measured, out / "gradients.png")
    laid_out = table(rows)
    (out / "gradients.md").write_text(laid_out + "\n")
    print(laid_out)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the figures as Markdown: a row for each estimator, and columns of error and cost for each network.

    Args:
        rows: Rows of the CSV file.
    """
    measured: dict[str, dict[str, Worth]] = {}
    for row in rows:
        forward, again, products = (int(row[name]) for name in ("forward", "again", "products"))
        figures = Worth(float(row["error"]), forward, again, products, float(row["states"]))
        measured.setdefault(row["estimator"], {})[row["case"]] = figures
    names = list(next(iter(measured.values())))
    cells = [
        [one, *(cell for figures in by_case.values() for cell in (f"{figures.error:.0e}", cost(figures)))]
        for one, by_case in measured.items()
    ]
    return markdown(
        ["estimator", *(head for name in names for head in (f"{name}: error", "F + products; states"))], cells
    )


def cost(figures: Worth) -> str:
    """Formats a cost: applications of F, after a + those in the backward pass, then products, and states.

    Args:
        figures: The figures of an estimator on one network.

    Example:
        >>> cost(Worth(error=0.1, forward=120, again=119, products=120, states=38.4))
        '120 + 119 F, 120; 38'
    """
    applied = f"{figures.forward} + {figures.again}" if figures.again else f"{figures.forward}"
    return f"{applied} F, {figures.products}; {figures.states:.0f}"


def draw(measured: dict[str, dict[str, Worth]], path: Path) -> None:
    """Plots each estimator's error against the cost of its backward pass, with a panel for each network.

    Args:
        measured: Figures by estimator and network.
        path: Path of the picture.
    """
    names = list(next(iter(measured.values())))
    figure = Figure(figsize=(5 * len(names), 6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for panel, name in zip(panels, names, strict=True):
        points = {
            one: (by_case[name].products + by_case[name].again, by_case[name]) for one, by_case in measured.items()
        }
        for taken, figures in points.values():
            panel.scatter(taken, figures.error, s=8 + figures.states / 3, alpha=0.6)
        for group in _neighbours({one: (taken, figures.error) for one, (taken, figures) in points.items()}):
            taken, figures = points[group[-1]]
            text = "\n".join(group)
            place = (taken, figures.error)
            panel.annotate(text, place, xytext=(7, 0), textcoords="offset points", fontsize=7, va="center")
        panel.set_xscale("log")
        panel.set_yscale("log")
        panel.margins(x=0.45)
        panel.set_title(name)
        panel.set_xlabel("products, and steps taken again, in the backward pass")
    panels[0].set_ylabel("relative error of the gradient")
    figure.savefig(path, dpi=110)


def _neighbours(points: dict[str, tuple[float, float]]) -> list[list[str]]:
    """Groups the names of points so close, on logarithmic axes, that their labels would overlap."""
    groups: list[list[str]] = []
    for name, (taken, error) in sorted(points.items(), key=lambda item: item[1][::-1], reverse=True):
        for group in groups:
            other_taken, other_error = points[group[-1]]
            if max(taken / other_taken, other_taken / taken) < 2 and other_error / error < 4:
                group.append(name)
                break
        else:
            groups.append([name])
    return groups
