"""This project against torchdeq, torchopt, xitorch and loops by hand."""

import statistics
import sys
from pathlib import Path

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from matplotlib.figure import Figure

from benchmarks.devices import DeviceName, available
from benchmarks.peers.cases import ALL_CASES, CaseName, make_case
from benchmarks.peers.measure import Calibrated, calibrate, exact_gradient, radius_of, seconds
from benchmarks.peers.methods import BY_HAND, OURS
from benchmarks.peers.peers import installed
from benchmarks.report import markdown, median_and_quartiles, write_csv
from benchmarks.timing import check_repeats, ratios
from rbp_lightning.errors import UserError

REFERENCE = next(iter(BY_HAND))

Ratios = dict[str, list[float] | str]
"""Of each method, its ratios to the loop by hand, or why there are none."""


def compare(name: CaseName, target: float, repeats: int, device: torch.device) -> tuple[Ratios, dict[str, Calibrated]]:
    """Compares all methods on a case.

    Args:
        name: The case.
        target: Relative error of the gradient.
        repeats: How often each is timed.
        device: Where.

    Returns:
        The ratios, and how the methods were calibrated.
    """
    with device:
        case, wide = make_case(name), make_case(name, torch.float64)
    radius, exact = radius_of(wide), exact_gradient(wide)
    methods = {**BY_HAND, **OURS, **installed()}
    outcomes = {one: calibrate(case, exact, one, method, radius, target) for one, method in methods.items()}
    calibrated = {one: outcome for one, outcome in outcomes.items() if isinstance(outcome, Calibrated)}
    found = ratios(seconds(case, list(calibrated.values()), radius, repeats), REFERENCE)
    return {one: outcome if isinstance(outcome, str) else found[one] for one, outcome in outcomes.items()}, calibrated


def cell(outcome: list[float] | str) -> str:
    """Median and quartiles, or that there are none; the CSV file has the reason."""
    if isinstance(outcome, str):
        return "fails" if outcome.startswith("fails") else outcome
    return median_and_quartiles(outcome)


def table(found: dict[str, Ratios]) -> str:
    """Lays the ratios out as Markdown, a column each case."""
    methods = list(next(iter(found.values())))
    return markdown(["", *found], [[one, *(cell(outcomes[one]) for outcomes in found.values())] for one in methods])


def plot(found: dict[str, Ratios], path: Path) -> None:
    """Draws the medians with quartiles into a PNG file."""
    figure = Figure(figsize=(2.2 * len(found) + 2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    methods = list(next(iter(found.values())))
    for panel, (name, outcomes) in zip(panels, found.items(), strict=True):
        for place, values in enumerate(outcomes.values()):
            if not isinstance(values, str):
                low, middle, high = statistics.quantiles(values, n=4)
                color = "C1" if methods[place] in OURS else "C0"
                panel.barh(place, middle, xerr=[[middle - low], [high - middle]], color=color)
        panel.axvline(1, color="black", linewidth=0.5)
        panel.set_yticks(range(len(methods)), methods)
        panel.set_xscale("log")
        panel.set_title(name, fontsize=9)
    panels[0].invert_yaxis()
    figure.supxlabel(f"time, as a multiple of {REFERENCE}", fontsize=9)
    figure.savefig(path, dpi=120)


def rows_of(name: str, outcomes: Ratios, calibrated: dict[str, Calibrated]) -> list[dict[str, str]]:
    """Rows of the CSV file: one for each ratio, and one for each method that has none."""
    rows = []
    for one, outcome in outcomes.items():
        row = dict.fromkeys(("case", "method", "tol", "error", "ratio", "failure"), "") | {"case": name, "method": one}
        if isinstance(outcome, str):
            rows.append({**row, "failure": outcome})
        else:
            row |= {"tol": f"{calibrated[one].tol:.3g}", "error": f"{calibrated[one].error:.2e}"}
            rows += [{**row, "ratio": f"{ratio:.4f}"} for ratio in outcome]
    return rows


def peers(
    cases: list[CaseName] = ALL_CASES,
    device: DeviceName = "cpu",
    error: PositiveFloat = 1e-3,
    repeats: PositiveInt = 20,
    out: Path = Path("logs/peers"),
) -> None:
    """This project against torchdeq, torchopt, xitorch and loops by hand.

    Each method gets the loosest tolerance at which its gradient has the wanted relative error against the exact
    gradient in float64. Then they take turns, and the time of each is divided by that of the loop by hand next to it.
    Prints a table of medians with quartiles, and leaves it beside a CSV file with every ratio and a picture.

    Args:
        cases: Networks to compare on.
        device: Where to run.
        error: Relative error of the gradient of every method.
        repeats: How often each method is timed, at least 2.
        out: Folder to write to.

    Raises:
        UserError: If no case could be compared, or an argument is not possible here.
    """
    check_repeats(repeats)
    where = available(device)
    torch.set_num_threads(1)
    found: dict[str, Ratios] = {}
    rows = []
    for name in cases:
        try:
            found[name], calibrated = compare(name, error, repeats, where)
        except UserError as reason:  # a data set that is not there
            print(f"{name}: left out. {reason}", file=sys.stderr)
            continue
        print(f"{name}: " + ", ".join(f"{one} {cell(outcome)}" for one, outcome in found[name].items()), flush=True)
        rows += rows_of(name, found[name], calibrated)
    if not found:
        raise UserError("No case could be compared.")
    write_csv(out / "peers.csv", rows)
    (out / "peers.md").write_text(table(found) + "\n")
    plot(found, out / "peers.png")
    print(table(found))
