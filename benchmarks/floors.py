"""The time of F and its products alone, beside that of the default estimator."""

import csv
import statistics
import time
import warnings
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from benchmarks.counts import counted
from benchmarks.peers.cases import ALL_CASES, CaseName, make_case
from benchmarks.peers.compare import REFERENCE
from benchmarks.peers.measure import gradient
from benchmarks.peers.methods import BY_HAND, OURS, Method
from benchmarks.peers.networks import Case
from benchmarks.report import markdown, median_and_quartiles, write_csv
from benchmarks.step_parts import timed_parts
from benchmarks.timing import Measured, call_timer, check_repeats, in_turn
from rbp_lightning.errors import UserError

DEFAULT = next(iter(OURS))

METHODS: dict[str, Method] = {"by hand": BY_HAND[REFERENCE], "default": OURS[DEFAULT]}

GOALS: dict[tuple[str, float], float] = {
    ("tanh, radius 0.38", 1e-3): 1.02,
    ("tanh, radius 0.38", 1e-5): 1.02,
    ("tanh, radius 0.93", 1e-5): 0.95,
    ("tanh, radius 0.99", 1e-3): 0.55,
    ("tanh, radius 0.99", 1e-5): 0.30,
    ("Hopfield network", 1e-5): 0.70,
    ("gated network on Cora", 1e-5): 0.80,
    ("training by SGD", 1e-5): 0.70,
}
"""The goals of the default: its time as a multiple of that of the loop by hand. The others are 1."""


def whole(case: Case, solve: Method, tol: float) -> Measured:
    """Times a solve and its gradient.

    Args:
        case: The network.
        solve: The method; it does not use the spectral radius.
        tol: Its tolerance.
    """
    timed = call_timer(lambda: gradient(case, solve(case, tol, float("nan"))), time.process_time)
    return lambda calls: timed.timeit(calls).mean


def parts(case: Case, steps: int, products: int) -> Measured:
    """Times the work that any implementation has to do.

    Args:
        case: The network.
        steps: Applications of F.
        products: Products with its transposed Jacobian, without the one into the parameters.
    """

    def seconds() -> float:
        return timed_parts(case, steps, products, time.process_time).total(steps, products)

    return lambda calls: statistics.mean(seconds() for _ in range(calls))


def measured(name: CaseName, target: float, tols: Mapping[str, float], repeats: int) -> list[dict[str, Any]]:
    """Measures a case at one error of the gradient; returns a row of the CSV file for each repeat.

    Args:
        name: The case.
        target: The error.
        tols: Tolerances of the two methods.
        repeats: Number of repeats.
    """
    case = make_case(name)

    def solve(one: str, case: Case) -> Tensor:
        return METHODS[one](case, tols[one], float("nan"))

    counts = {one: counted(case, partial(solve, one)) for one in METHODS}
    runs = {one: whole(case, method, tols[one]) for one, method in METHODS.items()}
    runs["alone"] = parts(case, counts["default"].applications, counts["default"].products - 1)
    times = in_turn(runs, repeats)
    row = {"case": name, "target": target}
    row |= {f"applications {one}": each.applications for one, each in counts.items()}
    row |= {f"products {one}": each.products for one, each in counts.items()}
    return [row | {one: times[one][repeat] for one in runs} for repeat in range(repeats)]


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Formats the times as Markdown, with a row for each case and error.

    Args:
        rows: Rows of the CSV file.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["case"], row["target"]), []).append(row)
    lines = []
    for (name, target), group in sorted(groups.items(), key=lambda item: -item[0][1]):
        applied = [f"{group[0][f'applications {one}']} + {group[0][f'products {one}']}" for one in METHODS]
        measured = statistics.median(row["default"] / row["by hand"] for row in group)
        goal = GOALS.get((name, target), 1.0)
        cells = [
            f"{goal:.2f}" if measured <= goal else f"**{goal:.2f}**",
            median_and_quartiles([row["default"] / row["by hand"] for row in group]),
            median_and_quartiles([row["alone"] / row["by hand"] for row in group]),
            f"{1e3 * statistics.median(row['default'] - row['alone'] for row in group):.2f}",
            f"{1e3 * statistics.median(row['by hand'] for row in group):.1f}",
        ]
        lines.append([f"{name}, {target:g}", *cells, *applied[::-1]])
    columns = ["network, error", "goal", "default", "F and products alone", "rest, ms", "by hand, ms"]
    return markdown([*columns, "F + products, default", "by hand"], lines)


def tolerances(file: Path, name: CaseName) -> dict[float, dict[str, float]]:
    """Tolerances of the two methods, by error of the gradient, where both reach it.

    Args:
        file: CSV file of the comparison with peers.
        name: The case.

    Raises:
        UserError: If there is no such file.
    """
    if not file.is_file():
        raise UserError(f"--peers={str(file)!r} is no file: `python -m benchmarks peers` writes it.")
    names = {REFERENCE: "by hand", DEFAULT: "default"}
    found: dict[float, dict[str, float]] = {}
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            if row["case"] == name and row["method"] in names and row["tol"]:
                found.setdefault(float(row["target"]), {})[names[row["method"]]] = float(row["tol"])
    return {target: tols for target, tols in found.items() if len(tols) == len(names)}


def floors(
    cases: list[CaseName] = ALL_CASES,
    peers: Path = Path("docs/results/peers.csv"),
    repeats: PositiveInt = 20,
    out: Path = Path("logs/floors"),
) -> None:
    """The time of F and its products alone, beside that of the default estimator.

    The default and the loop by hand solve each case at the tolerances that the comparison with peers found for equal
    errors of the gradient. Applications of F and products with its Jacobian are counted, and as many as the default
    needs are timed by themselves, in turn with both. All times are CPU times. Prints a table with the default's goals,
    in bold where they are missed, and writes a CSV file.

    Args:
        cases: Networks to time.
        peers: CSV file of the comparison with peers.
        repeats: Number of repeats, at least 2.
        out: Folder to write to.

    Raises:
        UserError: If there is no such file, or it has none of the cases.
    """
    check_repeats(repeats)
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in cases:
            for target, tols in tolerances(peers, name).items():
                rows += measured(name, target, tols, repeats)
            print(f"{name}: done", flush=True)
    if not rows:
        raise UserError(f"--peers={str(peers)!r} has none of these cases.")
    write_csv(out / "floors.csv", rows)
    print(table(rows))
