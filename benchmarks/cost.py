"""What a solve and its gradient cost beyond the network: ``python -m benchmarks.cost --help``.

Times what any implementation must do (T applications of the update, K products with its Jacobian and their sum, and
what comes once) by hand, and beside it the same by an estimator. Prints the estimator's time as a multiple of the sum
of these parts, what a step and a product come to in it, and how often a solve to a tolerance waits for the device.
Leaves a CSV file with every timing and a picture.
"""

import argparse
import csv
import statistics
import sys
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

from benchmarks import host_syncs
from benchmarks.devices import add_device, checked
from benchmarks.finished_runs import median_and_quartiles
from benchmarks.peers.cases import CASES
from benchmarks.step_parts import Parts, timed_parts, timed_whole
from rbp_lightning import RBP, ConvergenceWarning, NeumannRBP, Picard
from rbp_lightning.cli.errors import one_line_errors
from rbp_lightning.errors import UserError

SLOW = "tanh, radius 0.99"
"""Its solve takes many steps: what waits for the device is counted there too."""


@dataclass(frozen=True)
class Timing:
    """One repeat of one training step.

    Attributes:
        case: The network.
        estimator: The estimator's name.
        steps: T, the steps of the solve.
        products: K, the products with the transposed Jacobian.
        repeat: Which repeat.
        seconds: Seconds of the whole.
        parts: Those of the parts, measured right before.
    """

    case: str
    estimator: str
    steps: int
    products: int
    repeat: int
    seconds: float
    parts: Parts

    @property
    def ratio(self) -> float:
        """The whole as a multiple of the sum of its parts next to it."""
        return self.seconds / self.parts.total(self.steps, self.products)


def timings(
    name: str, steps: Sequence[int], products: Sequence[int], repeats: int, device: torch.device
) -> list[Timing]:
    """Times all combinations in turn, after a round to warm up.

    Args:
        name: The case.
        steps: Steps of the solve.
        products: Products with the transposed Jacobian by ``NeumannRBP``; ``RBP`` takes 20.
        repeats: How often.
        device: Where.
    """
    with device:
        case = CASES[name](torch.float32)
    found = []
    for repeat in range(-1, repeats):
        for number in steps:
            solver = Picard(number, 0.0)
            estimators: list[NeumannRBP | RBP] = [NeumannRBP(count, solver) for count in products]
            for estimator in (*estimators, RBP(20, 0.0, "gradient", solver=solver)):
                parts = timed_parts(case, number, estimator.steps)
                whole = timed_whole(case, estimator)
                found.append(Timing(name, type(estimator).__name__, number, estimator.steps, repeat, whole, parts))
    return [one for one in found if one.repeat >= 0]


def groups(found: Sequence[Timing]) -> dict[str, dict[int, list[float]]]:
    """The ratios of a case by estimator and number of steps."""
    grouped: dict[str, dict[int, list[float]]] = {}
    for one in found:
        grouped.setdefault(f"{one.estimator}({one.products})", {}).setdefault(one.steps, []).append(one.ratio)
    return grouped


def fits(found: Sequence[Timing]) -> list[list[float]]:
    """Fits seconds = T a + K b + c to the timings by ``NeumannRBP``, by least squares of the relative error.

    Returns:
        For each repeat a, b and c, as multiples of a step, of a product and its sum, and of what comes once by hand,
        each at the speed that the machine had at the time.
    """
    ratios = []
    for repeat in range(max(one.repeat for one in found) + 1):
        series = [one for one in found if one.repeat == repeat and one.estimator == "NeumannRBP"]
        by_hand = [
            (one.steps * one.parts.step, one.products * (one.parts.product + one.parts.sum), one.parts.once)
            for one in series
        ]
        shares = np.array(by_hand) / np.array([[one.seconds] for one in series])
        ratios.append(np.linalg.lstsq(shares, np.ones(len(series)), rcond=None)[0].tolist())
    return ratios


def tables(found: dict[str, list[Timing]]) -> str:
    """Lays parts, ratios and fits out as Markdown."""
    names = [field.name for field in fields(Parts)]
    lines = [f"| milliseconds | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for case, timed in found.items():
        cells = [median_and_quartiles([1e3 * getattr(one.parts, name) for one in timed], 3) for name in names]
        lines.append(f"| {case} | {' | '.join(cells)} |")
    steps = dict.fromkeys(one.steps for timed in found.values() for one in timed)
    lines += ["", f"| whole over its parts | {' | '.join(f'{one} steps' for one in steps)} |"]
    lines.append("|---" * (len(steps) + 1) + "|")
    for case, timed in found.items():
        for estimator, ratios in groups(timed).items():
            lines.append(
                f"| {case}, {estimator} | {' | '.join(median_and_quartiles(ratios[one], 3) for one in steps)} |"
            )
    lines += ["", "| fit of T a + K b + c | a / step | b / product | c / what comes once |", "|---|---|---|---|"]
    for case, timed in found.items():
        lines.append(
            f"| {case} | {' | '.join(median_and_quartiles(column, 3) for column in zip(*fits(timed), strict=True))} |"
        )
    return "\n".join(lines)


def plot(found: dict[str, list[Timing]], path: Path) -> None:
    """Draws the ratios into a PNG file."""
    figure = Figure(figsize=(4 * len(found) + 1, 3.4), layout="constrained")
    panels = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for panel, (case, timed) in zip(panels, found.items(), strict=True):
        for place, (estimator, ratios) in enumerate(groups(timed).items()):
            low, middle, high = np.array([statistics.quantiles(repeats, n=4) for repeats in ratios.values()]).T
            where = [number * 1.03**place for number in ratios]  # side by side
            panel.errorbar(where, middle, [middle - low, high - middle], fmt="o-", markersize=3, label=estimator)
        panel.axhline(1, color="black", linewidth=0.5)
        panel.axhline(1.05, color="black", linewidth=0.5, linestyle=":")
        panel.set_xscale("log")
        panel.set_title(case, fontsize=9)
        panel.set_xlabel("steps of the solve", fontsize=9)
    panels[0].set_ylabel("time of the whole over that of its parts", fontsize=9)
    panels[0].legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(args: Sequence[str] | None = None) -> None:
    """Times, prints the tables, and leaves CSV file and picture."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    cases = ["Hopfield network", "graph network on Cora", "gated network on Cora"]
    parser.add_argument("--cases", nargs="+", choices=CASES, default=cases, help="networks to time")
    add_device(parser)
    parser.add_argument("--steps", nargs="+", type=int, default=[10, 20, 50, 100], help="steps of the solve, T")
    parser.add_argument("--products", nargs="+", type=int, default=[5, 20, 40], help="terms of NeumannRBP, K")
    parser.add_argument("--repeats", type=int, default=20, help="how often each is timed, at least 2")
    parser.add_argument("--out", type=Path, default=Path("logs/cost"), help="folder to write to")
    options = parser.parse_args(args)
    if options.repeats < 2:
        raise UserError(f"--repeats={options.repeats} gives no spread: it must be at least 2.")
    for name, least in (("steps", 2), ("products", 1)):
        numbers = getattr(options, name)
        if min(numbers) < least or len(set(numbers)) < 2:
            raise UserError(f"--{name}={numbers}: a fit needs two different numbers, of at least {least}.")
    device = checked(options.device)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[Timing]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name in options.cases:
            try:
                found[name] = timings(name, options.steps, options.products, options.repeats, device)
            except UserError as reason:  # a data set that is not there
                print(f"{name}: left out. {reason}", file=sys.stderr)
    if not found:
        raise UserError("No case could be timed.")
    print(tables(found) + "\n\n" + host_syncs.table([*found, SLOW], device))
    rows = [{**vars(one), **vars(one.parts)} for timed in found.values() for one in timed]
    with (options.out / "cost.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [name for name in rows[0] if name != "parts"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    plot(found, options.out / "cost.png")


if __name__ == "__main__":
    with one_line_errors():
        main()
