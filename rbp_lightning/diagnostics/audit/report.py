"""The report of an audit: tables, files and a plot."""

import csv
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from rbp_lightning.diagnostics.audit.forward import ForwardMeasurement
from rbp_lightning.diagnostics.audit.measurement import Measurement
from rbp_lightning.diagnostics.audit.reference import Reference
from rbp_lightning.diagnostics.log_figure import can_draw

if TYPE_CHECKING:
    from matplotlib.figure import Figure


WIDTH = 120
"""The least width of a table, which logs and pipes have."""


def print_table(references: Sequence[Reference], measured: Sequence[Measurement]) -> None:
    """Prints the references, and a table with a row for each estimator.

    Args:
        references: The reference of each batch.
        measured: The summary of each estimator.
    """
    console = Console()
    console.width = max(console.width, WIDTH)
    for number, one in enumerate(references):
        residual = "" if one.adjoint_residual is None else f", adjoint residual {one.adjoint_residual:.1e}"
        norm = "" if one.norm is None else f", norm {one.norm:.3f}"
        symmetric = ", symmetric Jacobian" if one.symmetric else ""
        console.print(
            f"Batch {number}: compared with {one.kind} in float64 ({one.steps} steps, residual {one.residual:.1e}"
            f"{residual}); spectral radius {one.spectral_radius:.3f}{norm}{symmetric}",
            highlight=False,
        )
    columns = ["gradient", "cosine", "error", "same sign", "products", "ms", "saved"]
    table = Table(box=SIMPLE_HEAD, title=f"Gradients, the worst of {len(references)} batch(es)")
    for column in columns:
        table.add_column(column, no_wrap=True, justify="left" if column == "gradient" else "right")
    for row in measured:
        table.add_row(
            row.gradient,
            f"{row.cosine:.6f}",
            f"{row.relative_error:.1e}",
            f"{100 * row.sign_agreement:.1f} %",
            str(row.products),
            f"{1000 * row.seconds:.1f}",
            f"{row.saved_bytes / 1024:,.0f} KiB",
        )
    console.print(table)


def print_left_out(left_out: Mapping[str, str]) -> None:
    """Prints the estimators that cannot be applied, if there are any, with each reason once.

    Args:
        left_out: Their names, and why.

    Example:
        >>> print_left_out(dict.fromkeys(["CGRBP(steps=1)", "CGRBP(steps=2)"], "It has no products with J."))
        Left out: CGRBP(steps=1), CGRBP(steps=2). It has no products with J.
    """
    for reason in dict.fromkeys(left_out.values()):
        print(f"Left out: {', '.join(name for name in left_out if left_out[name] == reason)}. {reason}")


def print_solvers(solvers: Sequence[ForwardMeasurement]) -> None:
    """Prints a table with a row for each forward solver and batch, if there are any.

    Args:
        solvers: The measurements of the forward solvers.
    """
    if not solvers:
        return
    console = Console()
    console.width = max(console.width, WIDTH)
    table = Table(box=SIMPLE_HEAD, title="Forward solvers")
    for column in ("solver", "batch", "steps", "residual", "converged", "ms"):
        table.add_column(column, no_wrap=True, justify="left" if column == "solver" else "right")
    for row in solvers:
        converged = "yes" if row.converged else "no"
        residual, milliseconds = f"{row.residual:.1e}", f"{1000 * row.seconds:.1f}"
        table.add_row(row.solver, str(row.batch), str(row.steps), residual, converged, milliseconds)
    console.print(table)


def write_files(
    folder: Path,
    references: Sequence[Reference],
    measurements: Sequence[Measurement],
    measured: Sequence[Measurement],
    left_out: Mapping[str, str],
    solvers: Sequence[ForwardMeasurement],
    advice: str,
    error: float,
) -> None:
    """Writes ``audit.csv`` (each measurement), ``audit.json`` (everything) and ``audit.png`` (error against cost).

    Without matplotlib there is no ``audit.png``.

    Args:
        folder: The folder, which is created if missing.
        references: The reference of each batch.
        measurements: The measurements of the estimators on all batches.
        measured: The summary of each estimator.
        left_out: The estimators that cannot be applied, and why.
        solvers: The measurements of the forward solvers.
        advice: The advice.
        error: The relative error to reach.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [asdict(one) for one in measurements]
    with (folder / "audit.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    compared = [{name: value for name, value in vars(one).items() if name != "gradient"} for one in references]
    content = {
        "references": compared,
        "gradients": [asdict(one) for one in measured],
        "measurements": rows,
        "left_out": dict(left_out),
        "solvers": [asdict(one) for one in solvers],
        "advice": advice,
    }
    (folder / "audit.json").write_text(json.dumps(content, indent=2))
    if can_draw():
        pareto(measured, error).savefig(folder / "audit.png", dpi=120)


def pareto_front(measured: Sequence[Measurement]) -> list[Measurement]:
    """Returns the estimators that no other beats in both error and number of products, cheapest first.

    Args:
        measured: The summary of each estimator.

    Example:
        >>> rows = [Measurement(name, None, 1.0, error, 1.0, cost, 0.0, 0) for name, error, cost in
        ...         [("a", 0.1, 5), ("b", 0.2, 6), ("c", 0.01, 9)]]
        >>> [row.gradient for row in pareto_front(rows)]
        ['a', 'c']
    """
    front: list[Measurement] = []
    for row in sorted(measured, key=lambda row: (row.products, row.relative_error)):
        if not front or row.relative_error < front[-1].relative_error:
            front.append(row)
    return front


def pareto(measured: Sequence[Measurement], error: float) -> "Figure":
    """Plots relative error against the number of products, a line for each estimator.

    Rings mark the Pareto front, a star the configured estimator, and a dashed line the error to reach.

    Args:
        measured: The summary of each estimator.
        error: The relative error to reach.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 5.5), layout="constrained")
    axes = figure.add_subplot()
    lines: dict[str, list[Measurement]] = {}
    for row in measured:
        lines.setdefault(row.gradient.removeprefix("Implicit(").partition("(")[0], []).append(row)
    for number, (name, rows) in enumerate(lines.items()):
        rows.sort(key=lambda row: row.products)
        style: dict[str, Any] = {"marker": "os^vD"[number // 10], "color": f"C{number}"}
        if name.endswith(" as configured"):
            style = {"marker": "*", "markersize": 18, "color": "gold", "markeredgecolor": "black", "zorder": 3}
        axes.loglog(*_points(rows), label=name, **style)
    best = pareto_front(measured)
    axes.loglog(*_points(best), "o", markersize=12, fillstyle="none", color="black", label="no other beats it")
    axes.axhline(error, color="black", linestyle="--", label=f"asked for: {error:g}")
    axes.set(
        title="Cost and error of the gradients",
        xlabel="products with J^T and J",
        ylabel="relative error of the gradient",
    )
    axes.grid(alpha=0.3)
    figure.legend(loc="outside lower center", ncols=3, fontsize="small")
    return figure


def _points(rows: Sequence[Measurement]) -> tuple[list[int], list[float]]:
    """Products and errors; an error of 0 is drawn at the level of rounding, since the axis is logarithmic."""
    rounding = sys.float_info.epsilon
    return [row.products for row in rows], [max(row.relative_error, rounding) for row in rows]
