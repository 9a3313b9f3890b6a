"""Steps and time of each solver."""

import statistics
import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt

from benchmarks.peers.cases import ALL_CASES, CaseName, make_case
from benchmarks.peers.networks import Case
from benchmarks.report import markdown, write_csv
from benchmarks.timing import check_repeats, interleaved, ratios
from rbp_lightning import (
    GMRES,
    Anderson,
    Auto,
    BiCGSTAB,
    Broyden,
    ConjugateGradient,
    FixedPointAdjoint,
    FixedPointSolver,
    JacobianOperator,
    LinearSolver,
    NeumannRBP,
    NewtonKrylov,
    NormalCG,
    Picard,
    ReducedRankExtrapolation,
    Richardson,
    ignoring,
)
from rbp_lightning.errors import UserError

MOST = 3000
"""Limit on steps and products."""

FORWARD: dict[str, Callable[[float], FixedPointSolver]] = {
    "Picard": lambda tol: Picard(MOST, tol),
    "Anderson(window=5)": lambda tol: Anderson(MOST, tol),
    "ReducedRankExtrapolation(cycle=8)": lambda tol: ReducedRankExtrapolation(MOST, tol),
    "Broyden(memory=20)": lambda tol: Broyden(MOST, tol),
    "NewtonKrylov(krylov=10)": lambda tol: NewtonKrylov(MOST, tol),
    "Auto(cycle=16)": lambda tol: Auto(MOST, tol),
}

ADJOINT: dict[str, Callable[[float], LinearSolver]] = {
    "Richardson": lambda tol: Richardson(MOST, tol),
    "GMRES(restart=20)": lambda tol: GMRES(MOST, tol),
    "BiCGSTAB": lambda tol: BiCGSTAB(MOST, tol),
    "ConjugateGradient": lambda tol: ConjugateGradient(MOST, tol),
    "NormalCG": lambda tol: NormalCG(MOST, tol),
    "Anderson(window=5)": lambda tol: FixedPointAdjoint(Anderson(MOST, tol)),
    "Auto(cycle=16)": lambda tol: FixedPointAdjoint(Auto(MOST, tol)),
}

Outcome = tuple[int, bool]
"""Steps or products, and whether it converged."""


def forward(case: Case, solver: FixedPointSolver) -> Outcome:
    """Solves for the fixed point.

    Args:
        case: The network.
        solver: The forward solver.
    """
    update = case.update(case.prepare(*case.parameters))
    with torch.no_grad():
        found = NeumannRBP(0, solver)(update, case.start, batch_dims=case.batch_dims)
    return found.steps, found.converged


def adjoint(operator: JacobianOperator, gradient: torch.Tensor, solver: LinearSolver) -> Outcome:
    """Solves the adjoint equation.

    Args:
        operator: The Jacobian at the fixed point.
        gradient: g.
        solver: The linear solver.
    """
    with torch.no_grad():
        found = solver.solve(operator.fresh(), [gradient])
    return found.products, found.converged


def solvers(
    cases: list[CaseName] = ALL_CASES,
    tol: PositiveFloat = 1e-5,
    adjoint_tol: PositiveFloat = 1e-4,
    repeats: PositiveInt = 10,
    out: Path = Path("logs/solvers"),
) -> None:
    """Steps or products of each solver, and its time as a multiple of that of Picard or Richardson iteration.

    Args:
        cases: Networks to solve.
        tol: Relative residual of the forward solve.
        adjoint_tol: Relative residual of the adjoint.
        repeats: Number of repeats, at least 2.
        out: Folder to write to.

    Raises:
        UserError: If no case could be solved.
    """
    check_repeats(repeats)
    torch.set_num_threads(1)
    rows: list[dict[str, str]] = []
    for name in cases:
        try:
            case = make_case(name)
        except UserError as reason:  # its data set is missing
            print(f"{name}: left out. {reason}", file=sys.stderr)
            continue
        with ignoring(), warnings.catch_warnings():
            update = case.update(case.prepare(*case.parameters))
            state = NeumannRBP(0, Picard(MOST, 0.1 * tol))(update, case.start, batch_dims=case.batch_dims).state
            operator = JacobianOperator.at(update, state.detach(), case.batch_dims)
            gradient = torch.autograd.grad(case.loss(leaf := state.detach().requires_grad_()), leaf)[0]
            ways = {("forward", one): partial(forward, case, make(tol)) for one, make in FORWARD.items()}
            ways |= {
                ("adjoint", one): partial(adjoint, operator, gradient, make(adjoint_tol))
                for one, make in ADJOINT.items()
            }
            rows += measured(name, ways, repeats)
        print(f"{name}: done", flush=True)
    if not rows:
        raise UserError("No case could be solved.")
    write_csv(out / "solvers.csv", rows)
    text = tables(rows)
    (out / "solvers.md").write_text(text + "\n")
    print(text)


def measured(name: str, ways: Mapping[tuple[str, str], Callable[[], Outcome]], repeats: int) -> list[dict[str, str]]:
    """Times the solvers in turn; returns a row of the CSV file for each.

    Args:
        name: The case.
        ways: The solves, by equation and solver.
        repeats: Number of repeats.
    """
    rows = []
    for equation, first in (("forward", "Picard"), ("adjoint", "Richardson")):
        chosen = {one: way for (which, one), way in ways.items() if which == equation}
        found = ratios(interleaved(chosen, repeats), first)
        for one, way in chosen.items():
            steps, converged = way()
            row = {"case": name, "equation": equation, "solver": one, "steps": str(steps)}
            rows.append(row | {"converged": str(converged), "ratio": f"{statistics.median(found[one]):.3f}"})
    return rows


def tables(rows: list[dict[str, str]]) -> str:
    """Formats the rows of the CSV file as Markdown, with a table for each equation."""
    return "\n\n".join(table(rows, equation) for equation in ("forward", "adjoint"))


def table(rows: list[dict[str, str]], equation: str) -> str:
    """Formats the steps as Markdown, with times as multiples of the first solver's.

    Args:
        rows: Rows of the CSV file.
        equation: ``"forward"`` or ``"adjoint"``.
    """
    chosen = [row for row in rows if row["equation"] == equation]
    names, kinds = (list(dict.fromkeys(row[key] for row in chosen)) for key in ("case", "solver"))
    cells = {
        (row["solver"], row["case"]): f"{row['steps']}; {float(row['ratio']):.2f}"
        if row["converged"] == "True"
        else "does not converge"
        for row in chosen
    }
    head = "forward: steps; time" if equation == "forward" else "adjoint: products; time"
    return markdown([head, *names], [[kind, *(cells[kind, name] for name in names)] for kind in kinds])
