"""The overhead of a solve and its gradient over the network's own operations."""

import statistics
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jsonargparse.typing import PositiveInt
from matplotlib.figure import Figure

from benchmarks import host_syncs
from benchmarks.devices import DeviceName, available
from benchmarks.peers.cases import CaseName, make_case
from benchmarks.report import as_written, markdown, median_and_quartiles, write_csv
from benchmarks.step_parts import Parts, timed_parts, timed_whole
from benchmarks.timing import check_repeats
from rbp_lightning import RBP, ConvergenceWarning, NeumannRBP, Picard
from rbp_lightning.errors import UserError

SLOW: CaseName = "tanh, radius 0.99"
"""A network whose solve takes many steps; its reads from the device are counted as well."""


@dataclass(frozen=True)
class Timing:
    """One repeat of one training step.

    Attributes:
        case: The network.
        estimator: The estimator's name.
        steps: T, the steps of the solve.
        products: K, the products with the transposed Jacobian.
        repeat: Index of the repeat.
        seconds: Time of the training step.
        parts: Times of its parts, measured immediately before.
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
        """Time of the step divided by the sum of its parts."""
        return self.seconds / self.parts.total(self.steps, self.products)


def timings(
    name: CaseName, steps: Sequence[int], products: Sequence[int], repeats: int, device: torch.device
) -> list[Timing]:
    """Times all combinations in turn, after a warm-up round.

    Args:
        name: The case.
        steps: Numbers of steps of the solve.
        products: Numbers of products with the transposed Jacobian by ``NeumannRBP``; ``RBP`` takes 20.
        repeats: Number of repeats.
        device: The device to run on.
    """
    with device:
        case = make_case(name)
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
    """Groups the ratios of a case by estimator and number of steps."""
    grouped: dict[str, dict[int, list[float]]] = {}
    for one in found:
        grouped.setdefault(f"{one.estimator}({one.products})", {}).setdefault(one.steps, []).append(one.ratio)
    return grouped


def fits(found: Sequence[Timing]) -> list[list[float]]:
    """Fits seconds = T a + K b + c to the timings by ``NeumannRBP``, by least squares of the relative error.

    Returns:
        For each repeat a, b and c, as multiples of the times by hand of a step, of a product with its sum, and of the
        work done once, which were measured at the same time.
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


def tables(found: Mapping[CaseName, Sequence[Timing]]) -> str:
    """Formats parts, ratios and fits as Markdown tables."""
    names = [field.name for field in fields(Parts)]
    parts = [
        [case, *(median_and_quartiles([1e3 * getattr(one.parts, name) for one in timed], 3) for name in names)]
        for case, timed in found.items()
    ]
    steps = list(dict.fromkeys(one.steps for timed in found.values() for one in timed))
    wholes = [
        [f"{case}, {estimator}", *(median_and_quartiles(ratios[one], 3) for one in steps)]
        for case, timed in found.items()
        for estimator, ratios in groups(timed).items()
    ]
    fitted = [
        [case, *(median_and_quartiles(column, 3) for column in zip(*fits(timed), strict=True))]
        for case, timed in found.items()
    ]
    return "\n\n".join(
        [
            markdown(["milliseconds", *names], parts),
            markdown(["whole over its parts", *(f"{one} steps" for one in steps)], wholes),
            markdown(["fit of T a + K b + c", "a / step", "b / product", "c / work done once"], fitted),
        ]
    )


def tables_of_file(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the rows of the CSV file as Markdown tables."""
    names = [field.name for field in fields(Parts)]
    found: dict[CaseName, list[Timing]] = {}
    for row in rows:
        parts = Parts(**{name: row[name] for name in names})
        rest = {name: value for name, value in row.items() if name not in names}
        found.setdefault(row["case"], []).append(Timing(**rest, parts=parts))
    return tables(found)


def plot(found: dict[CaseName, list[Timing]], path: Path) -> None:
    """Plots the ratios to a PNG file."""
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


def cost(
    cases: list[CaseName] = ["Hopfield network", "graph network on Cora", "gated network on Cora"],
    device: DeviceName = "cpu",
    steps: list[PositiveInt] = [10, 20, 50, 100],
    products: list[PositiveInt] = [5, 20, 40],
    repeats: PositiveInt = 20,
    out: Path = Path("logs/cost"),
) -> None:
    """The overhead of a solve and its gradient over the network's own operations.

    Times the work that any implementation has to do (T applications of the update, K products with its Jacobian and
    their sum, and what is done once) by hand, and next to it an estimator. Prints the estimator's time as a multiple of
    the sum of these parts, the cost of a step and of a product within it, and how often a solve to a tolerance waits
    for the device. Writes a CSV file with every timing, and a picture.

    Args:
        cases: Networks to time.
        device: The device to run on.
        steps: Numbers of steps of the solve, T.
        products: Numbers of terms of NeumannRBP, K.
        repeats: Number of repeats, at least 2.
        out: Folder to write to.

    Raises:
        UserError: If an argument is invalid, or no case could be timed.
    """
    check_repeats(repeats)
    for option, numbers, least in (("steps", steps, 2), ("products", products, 1)):
        if min(numbers) < least or len(set(numbers)) < 2:
            raise UserError(f"--{option}={numbers}: a fit needs two different numbers, each at least {least}.")
    where = available(device)
    torch.set_num_threads(1)
    found: dict[CaseName, list[Timing]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        for name in cases:
            try:
                found[name] = timings(name, steps, products, repeats, where)
            except UserError as reason:  # its data set is missing
                print(f"{name}: left out. {reason}", file=sys.stderr)
    if not found:
        raise UserError("No case could be timed.")
    reads = host_syncs.reads([*found, SLOW], where)
    print(tables(found) + "\n\n" + as_written(reads))
    rows = [asdict(one) for timed in found.values() for one in timed]
    write_csv(out / "cost.csv", [row | row.pop("parts") for row in rows])
    write_csv(out / "reads.csv", reads)
    plot(found, out / "cost.png")
