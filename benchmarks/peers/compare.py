"""This project compared with other PyTorch packages and loops by hand."""

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from matplotlib.figure import Figure

from benchmarks.devices import DeviceName, available
from benchmarks.peers.cases import ALL_CASES, CaseName, make_case
from benchmarks.peers.measure import Calibrated, Setting, calibrate, exact_gradient, radius_of, seconds
from benchmarks.peers.methods import BY_HAND, OURS, Method
from benchmarks.peers.peers import installed
from benchmarks.report import markdown, median_and_quartiles, write_csv
from benchmarks.timing import check_repeats, ratios
from rbp_lightning.errors import UserError

REFERENCE = next(iter(BY_HAND))

Ratios = dict[str, list[float] | str]
"""The ratios of each method to the loop by hand, or why there are none."""

Found = dict[float, dict[str, Ratios]]
"""Ratios by error and case."""

COLUMNS = ("case", "target", "method", "tol", "error", "ratio", "failure")


def chosen(names: Sequence[str]) -> dict[str, Method]:
    """Returns the loop by hand and the named methods; all methods if none is named.

    Args:
        names: The names.

    Raises:
        UserError: If a method does not exist or is not installed.
    """
    methods = {**BY_HAND, **OURS, **installed()}
    if unknown := set(names) - set(methods):
        raise UserError(f"--methods: there is no {', '.join(sorted(unknown))} here, but {', '.join(methods)}.")
    return {one: method for one, method in methods.items() if not names or one in (REFERENCE, *names)}


def compare(
    name: CaseName, targets: Sequence[float], repeats: int, device: torch.device, methods: Mapping[str, Method]
) -> Iterator[tuple[float, Ratios, dict[str, Calibrated]]]:
    """Compares methods on a case.

    Args:
        name: The case.
        targets: Relative errors of the gradient.
        repeats: Number of repeats.
        device: The device to run on.
        methods: The methods, including the loop by hand.

    Yields:
        Each error, its ratios, and how the methods were calibrated.
    """
    with device:
        case, wide = make_case(name), make_case(name, torch.float64)
    radius, exact = radius_of(wide), exact_gradient(wide)
    outcomes = {one: calibrate(case, exact, one, method, radius, targets) for one, method in methods.items()}
    for place, target in enumerate(targets):
        here = {one: each[place] for one, each in outcomes.items()}
        calibrated = {one: outcome for one, outcome in here.items() if isinstance(outcome, Calibrated)}
        if REFERENCE not in calibrated:
            print(f"{name}, error {target:g}: left out. {REFERENCE}: {here[REFERENCE]}", file=sys.stderr)
            continue
        found = ratios(seconds(case, list(calibrated.values()), radius, repeats), REFERENCE)
        yield (
            target,
            {one: outcome if isinstance(outcome, str) else found[one] for one, outcome in here.items()},
            calibrated,
        )


def cell(outcome: list[float] | str) -> str:
    """Formats the median with quartiles, or says that there are none; the CSV file has the reason."""
    if isinstance(outcome, str):
        return "fails" if outcome.startswith("fails") else outcome
    return median_and_quartiles(outcome)


def table(target: float, found: dict[str, Ratios]) -> str:
    """Formats the ratios at one error as Markdown, with a column for each case."""
    methods = dict.fromkeys(one for outcomes in found.values() for one in outcomes)
    rows = [[one, *(cell(outcomes[one]) if one in outcomes else "" for outcomes in found.values())] for one in methods]
    return markdown([f"error of at most {target:g}", *found], rows)


def tables(rows: Sequence[Mapping[str, str]]) -> str:
    """Formats the rows of the CSV file as Markdown, with a table for each error."""
    found: Found = {}
    for row in rows:
        outcomes = found.setdefault(float(row["target"]), {}).setdefault(row["case"], {})
        if row["failure"]:
            outcomes[row["method"]] = row["failure"]
        else:
            values = outcomes.setdefault(row["method"], [])
            assert isinstance(values, list)  # a method has ratios or a failure
            values.append(float(row["ratio"]))
    return "\n\n".join(table(target, outcomes) for target, outcomes in found.items())


def plot(found: Found, path: Path) -> None:
    """Plots the medians with quartiles to a PNG file, with a row for each error."""
    columns = max(len(outcomes) for outcomes in found.values())
    figure = Figure(figsize=(2.2 * columns + 2, 3.6 * len(found)), layout="constrained")
    grid = figure.subplots(len(found), columns, sharey=True, squeeze=False)
    for panels, (target, cases) in zip(grid, found.items(), strict=True):
        for panel in panels[len(cases) :]:
            panel.set_visible(False)
        for panel, (name, outcomes) in zip(panels, cases.items(), strict=False):
            for place, (method, values) in enumerate(outcomes.items()):
                if not isinstance(values, str):
                    low, middle, high = statistics.quantiles(values, n=4)
                    color = "C1" if method in OURS else "C0"
                    panel.barh(place, middle, xerr=[[middle - low], [high - middle]], color=color)
            panel.axvline(1, color="black", linewidth=0.5)
            panel.set_yticks(range(len(outcomes)), list(outcomes))
            panel.set_xscale("log")
            panel.set_title(f"{name}, {target:g}", fontsize=9)
    grid[0][0].invert_yaxis()
    figure.supxlabel(f"time, as a multiple of {REFERENCE}", fontsize=9)
    figure.savefig(path, dpi=120)


def rows_of(target: float, name: str, outcomes: Ratios, settings: Mapping[str, Setting]) -> list[dict[str, str]]:
    """Returns rows of the CSV file: one for each ratio, and one for each method that has none."""
    rows = []
    for one, outcome in outcomes.items():
        row = dict.fromkeys(COLUMNS, "") | {"case": name, "target": f"{target:g}", "method": one}
        if isinstance(outcome, str):
            rows.append({**row, "failure": outcome})
        else:
            row |= {"tol": f"{settings[one].tol:.3g}", "error": f"{settings[one].error:.2e}"}
            rows += [{**row, "ratio": f"{ratio:.4f}"} for ratio in outcome]
    return rows


def peers(
    cases: list[CaseName] = ALL_CASES,
    device: DeviceName = "cpu",
    errors: list[PositiveFloat] = [1e-3, 1e-5],
    methods: list[str] = [],
    repeats: PositiveInt = 20,
    out: Path = Path("logs/peers"),
) -> None:
    """This project compared with other PyTorch packages and loops by hand.

    Each method gets the loosest tolerance at which its gradient has the given error relative to the exact gradient in
    float64. The methods take turns, and the time of each (CPU time, on a CPU) is divided by that of the loop by hand.
    Prints a table of medians with quartiles for each error, and writes the tables, a CSV file with every ratio and a
    picture.

    Args:
        cases: The networks.
        device: The device to run on.
        errors: Relative errors of the gradient; the methods are compared at each.
        methods: Methods to compare with the loop by hand; all if none is given.
        repeats: Number of repeats, at least 2.
        out: Folder to write to.

    Raises:
        UserError: If an argument is invalid, or no case could be compared.
    """
    check_repeats(repeats)
    where, compared = available(device), chosen(methods)
    torch.set_num_threads(1)
    found: Found = {}
    rows = []
    for name in cases:
        try:
            for target, outcomes, calibrated in compare(name, errors, repeats, where, compared):
                found.setdefault(target, {})[name] = outcomes
                cells = ", ".join(f"{one} {cell(outcome)}" for one, outcome in outcomes.items())
                print(f"{name}, error {target:g}: {cells}", flush=True)
                rows += rows_of(target, name, outcomes, calibrated)
                write_csv(out / "peers.csv", rows)  # keeps what is done
        except UserError as reason:  # its data set is missing
            print(f"{name}: left out. {reason}", file=sys.stderr)
    if not found:
        raise UserError("No case could be compared.")
    text = tables(rows)
    (out / "peers.md").write_text(text + "\n")
    plot(found, out / "peers.png")
    print(text)
