"""This project against torchdeq, torchopt, xitorch and loops by hand: ``python -m benchmarks.peers --help``.

Each method gets the loosest tolerance at which its gradient has the wanted relative error against the exact gradient in
float64. Then they take turns, a solve that is not timed and one that is, and the time of each is divided by that of the
loop by hand next to it. Prints a table of medians with quartiles, and leaves it beside a CSV file with every ratio and
a picture.
"""

import argparse
import csv
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from matplotlib.figure import Figure

from benchmarks.devices import add_device, checked
from benchmarks.finished_runs import median_and_quartiles
from benchmarks.peers.cases import CASES
from benchmarks.peers.measure import Calibrated, calibrate, exact_gradient, seconds
from benchmarks.peers.methods import BY_HAND, OURS
from benchmarks.peers.peers import installed
from rbp_lightning.cli.errors import one_line_errors
from rbp_lightning.errors import UserError

REFERENCE = next(iter(BY_HAND))

Ratios = dict[str, list[float] | str]
"""Of each method, its ratios to the loop by hand, or why there are none."""


def compare(name: str, target: float, repeats: int, device: torch.device) -> tuple[Ratios, dict[str, Calibrated]]:
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
        case, wide = CASES[name](torch.float32), CASES[name](torch.float64)
    radius, exact = wide.radius(), exact_gradient(wide)
    methods = {**BY_HAND, **OURS, **installed()}
    outcomes = {one: calibrate(case, exact, one, method, radius, target) for one, method in methods.items()}
    calibrated = {one: outcome for one, outcome in outcomes.items() if isinstance(outcome, Calibrated)}
    times = seconds(case, list(calibrated.values()), radius, repeats)
    ratios: Ratios = {
        one: outcome
        if isinstance(outcome, str)
        else [own / hand for own, hand in zip(times[one], times[REFERENCE], strict=True)]
        for one, outcome in outcomes.items()
    }
    return ratios, calibrated


def cell(ratios: list[float] | str) -> str:
    """Median and quartiles, or that there are none; the CSV file has the reason."""
    if isinstance(ratios, str):
        return "fails" if ratios.startswith("fails") else ratios
    return median_and_quartiles(ratios)


def table(found: dict[str, Ratios]) -> str:
    """Lays the ratios out as Markdown, a column each case."""
    methods = list(next(iter(found.values())))
    lines = [f"| | {' | '.join(found)} |", "|---" * (len(found) + 1) + "|"]
    lines += [f"| {one} | {' | '.join(cell(ratios[one]) for ratios in found.values())} |" for one in methods]
    return "\n".join(lines)


def plot(found: dict[str, Ratios], path: Path) -> None:
    """Draws the medians with quartiles into a PNG file."""
    figure = Figure(figsize=(2.2 * len(found) + 2, 3.6), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    methods = list(next(iter(found.values())))
    for panel, (name, ratios) in zip(panels, found.items(), strict=True):
        for place, values in enumerate(ratios.values()):
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


def main(args: Sequence[str] | None = None) -> None:
    """Compares, prints the table, and leaves CSV file, table and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES), help="networks to compare on")
    add_device(parser)
    parser.add_argument("--error", type=float, default=1e-3, help="relative error of the gradient of every method")
    parser.add_argument("--repeats", type=int, default=20, help="how often each method is timed, at least 2")
    parser.add_argument("--out", type=Path, default=Path("logs/peers"), help="folder to write to")
    options = parser.parse_args(args)
    if options.repeats < 2:
        raise UserError(f"--repeats={options.repeats} gives no spread: it must be at least 2.")
    device = checked(options.device)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, Ratios] = {}
    rows = []
    for name in options.cases:
        try:
            found[name], calibrated = compare(name, options.error, options.repeats, device)
        except UserError as reason:  # a data set that is not there
            print(f"{name}: left out. {reason}", file=sys.stderr)
            continue
        print(f"{name}: " + ", ".join(f"{one} {cell(ratios)}" for one, ratios in found[name].items()), flush=True)
        for one, ratios in found[name].items():
            if isinstance(ratios, str):
                rows.append([name, one, "", "", "", ratios])
            else:
                tol, error = calibrated[one].tol, calibrated[one].error
                rows += [[name, one, f"{tol:.3g}", f"{error:.2e}", f"{ratio:.4f}", ""] for ratio in ratios]
    if not found:
        raise UserError("No case could be compared.")
    with (options.out / "peers.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["case", "method", "tol", "error", "ratio", "failure"], *rows])
    (options.out / "peers.md").write_text(table(found) + "\n")
    plot(found, options.out / "peers.png")
    print(table(found))


if __name__ == "__main__":
    with one_line_errors():
        main()
