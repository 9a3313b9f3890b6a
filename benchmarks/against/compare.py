"""This checkout against another one, such as one of an earlier commit."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, fields
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse.typing import PositiveInt

from benchmarks.asked_process import AskedProcess
from benchmarks.counts import Counts
from benchmarks.peers.cases import ALL_CASES, CaseName, make_case
from benchmarks.peers.cora import cora
from benchmarks.peers.graphs import GRAPH_NETWORKS
from benchmarks.peers.measure import Calibrated, calibrate, exact_gradient, radius_of
from benchmarks.peers.methods import MAX_STEPS, PAPER, terms
from benchmarks.report import markdown, median_and_quartiles, write_csv
from benchmarks.timing import SECONDS, check_repeats
from rbp_lightning.errors import UserError

OWN = Path(__file__).resolve().parents[2]
ERROR = 1e-3
"""Relative error of the gradient that the tolerances are chosen for."""


class Worker(AskedProcess):
    """An interpreter that has the library of a checkout imported.

    Args:
        checkout: The checkout's folder.
    """

    def __init__(self, checkout: Path) -> None:
        super().__init__([sys.executable, str(Path(__file__).with_name("worker.py")), str(checkout)], "A checkout")

    def seconds(self, calls: int, **request: Any) -> float:
        """Mean seconds of a solve and its gradient.

        Args:
            calls: How many to take the mean of.
            **request: What to solve, as ``worker.seconds`` takes it.

        Raises:
            UserError: If the checkout cannot do it.
        """
        return float(self.ask(ask="seconds", calls=calls, **request))

    def counts(self, **request: Any) -> dict[str, int]:
        """Counts of a solve and its gradient, by the names that ``benchmarks.counts.Counts`` has for them.

        Args:
            **request: What to solve, as ``worker.counts`` takes it.

        Raises:
            UserError: If the checkout cannot do it.
        """
        return {name: int(count) for name, count in self.ask(ask="counts", **request).items()}


def tolerances(name: CaseName) -> tuple[dict[str, Calibrated], float]:
    """Finds the tolerances at which this checkout's gradients are as exact as they are meant to be.

    Args:
        name: The case.

    Returns:
        The calibrated estimators, and the spectral radius of the case.
    """
    case, wide = make_case(name), make_case(name, torch.float64)
    radius, exact = radius_of(wide), exact_gradient(wide)
    outcomes = (calibrate(case, exact, one, method, radius, [ERROR])[0] for one, method in PAPER.items())
    return {one.name: one for one in outcomes if isinstance(one, Calibrated)}, radius


def rows_of(own: Worker, others: Mapping[str, Worker], request: dict[str, Any], repeats: int) -> list[dict[str, Any]]:
    """Times the same by all workers, in turn and with each of them first as often, and counts what it consists of.

    Args:
        own: Of this checkout.
        others: Of the others, by name.
        request: What to solve.
        repeats: How often.

    Returns:
        For each repeat and other checkout the time of this one over that of the other one next to it, and how much
        more this one counts.
    """
    workers = [own, *others.values()]
    counts = {worker: worker.counts(**request) for worker in workers}
    calls = max(1, round(SECONDS / max(worker.seconds(1, **request) for worker in workers)))
    found = []
    for repeat in range(repeats):
        first = repeat % len(workers)
        times = {worker: worker.seconds(calls, **request) for worker in workers[first:] + workers[:first]}
        for name, other in others.items():
            more = {f"more {one}": count - counts[other][one] for one, count in counts[own].items()}
            found.append({"checkout": name, "ratio": times[own] / times[other], "seconds": times[own], **more})
    return found


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Lays ratios and counts out as Markdown, a row for each checkout and estimator.

    Args:
        rows: Of the CSV file.
    """
    groups: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        groups.setdefault((row["checkout"], row["estimator"]), {}).setdefault(row["case"], []).append(row)
    names = list(dict.fromkeys(row["case"] for row in rows))
    lines = [
        [f"{estimator}, against {checkout}", *(cell(by_case[one]) if one in by_case else "" for one in names)]
        for (checkout, estimator), by_case in groups.items()
    ]
    return markdown(["processor time here / there; F, products, operators more", *names], lines)


def cell(group: Sequence[Mapping[str, Any]]) -> str:
    """Median of the ratios with quartiles, and how much more is counted here than there."""
    more = ", ".join(f"{group[0][f'more {one.name}']:+.0f}" for one in fields(Counts))
    return f"{median_and_quartiles([row['ratio'] for row in group])}; {more}"


def against(
    checkout: Path,
    cases: list[CaseName] = ALL_CASES,
    repeats: PositiveInt = 20,
    more: list[Path] = [],
    out: Path = Path("logs/against"),
) -> None:
    """This checkout against another one, such as one of an earlier commit.

    Solves the cases of the comparison with peers by the library of all checkouts, each in an interpreter of its own,
    on one thread and to the same tolerances. They take turns, and the processor time of this checkout is divided by
    that of another one next to it. Prints medians with quartiles, and how many more applications of F, products with
    its Jacobian and operators of PyTorch this one takes. Leaves a CSV file with every ratio.

    Args:
        checkout: Folder of the other checkout.
        cases: Networks to compare on.
        repeats: How often each is timed, at least 2.
        more: Folders of more checkouts.
        out: Folder to write to.

    Raises:
        UserError: If no case could be compared, or an argument is not possible here.
    """
    check_repeats(repeats)
    for one in (checkout, *more):
        if not (one / "rbp_lightning").is_dir():
            raise UserError(f"checkout={str(one)!r} holds no rbp_lightning: give the folder of a checkout.")
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    with ExitStack() as stack:
        own = stack.enter_context(Worker(OWN))
        others = {one.resolve().name: stack.enter_context(Worker(one)) for one in (checkout, *more)}
        folder = Path(stack.enter_context(TemporaryDirectory()))
        for name in cases:
            file = None
            try:
                if name in GRAPH_NETWORKS:
                    file = str(folder / f"{name}.pt")
                    torch.save(asdict(cora(name)), file)
                calibrated, radius = tolerances(name)
            except UserError as reason:  # a data set that is not there
                print(f"{name}: left out. {reason}", file=sys.stderr)
                continue
            for estimator, how in calibrated.items():
                options = {"name": estimator, "max_steps": MAX_STEPS, "tol": how.tol, "terms": terms(how.tol, radius)}
                request = {"case": {"name": name, "graph": file}, "estimator": options}
                found = rows_of(own, others, request, repeats)
                rows += [{"case": name, "estimator": estimator, **row} for row in found]
                cells = [cell(found[one :: len(others)]) for one in range(len(others))]
                print(f"{name}, {estimator}: {', '.join(cells)}", flush=True)
            write_csv(out / "against.csv", rows)  # what is done is kept
    if not rows:
        raise UserError("No case could be compared.")
    print(table(rows))
