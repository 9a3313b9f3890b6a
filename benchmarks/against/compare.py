"""This checkout compared with another one, such as an earlier commit."""

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
"""Relative error of the gradient for which the tolerances are chosen."""


class Worker(AskedProcess):
    """An interpreter with the library of a checkout.

    Args:
        checkout: The checkout's folder.
    """

    def __init__(self, checkout: Path) -> None:
        super().__init__([sys.executable, str(Path(__file__).with_name("worker.py")), str(checkout)], "A checkout")

    def seconds(self, calls: int, **request: Any) -> float:
        """Mean seconds of a solve and its gradient.

        Args:
            calls: The number of solves to average over.
            **request: The case and the estimator, as for ``worker.seconds``.

        Raises:
            UserError: If the checkout cannot do it.
        """
        return float(self.ask(ask="seconds", calls=calls, **request))

    def counts(self, **request: Any) -> dict[str, int]:
        """Counts of a solve and its gradient, by the attribute names of ``benchmarks.counts.Counts``.

        Args:
            **request: The case and the estimator, as for ``worker.counts``.

        Raises:
            UserError: If the checkout cannot do it.
        """
        return {name: int(count) for name, count in self.ask(ask="counts", **request).items()}


def tolerances(name: CaseName) -> tuple[dict[str, Calibrated], float]:
    """Finds the tolerances at which this checkout's gradients have the relative error ``ERROR``.

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
    """Times and counts a solve and its gradient with all workers, in turn and each of them first equally often.

    Args:
        own: The worker of this checkout.
        others: The workers of the others, by name.
        request: The case and the estimator.
        repeats: Number of repeats.

    Returns:
        For each repeat and other checkout, the time of this checkout divided by that of the other one, and the
        differences of their counts.
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
    """Formats ratios and counts as Markdown, with a row for each checkout and estimator.

    Args:
        rows: Rows of the CSV file.
    """
    groups: dict[tuple[str, str], dict[str, list[Mapping[str, Any]]]] = {}
    for row in rows:
        groups.setdefault((row["checkout"], row["estimator"]), {}).setdefault(row["case"], []).append(row)
    names = list(dict.fromkeys(row["case"] for row in rows))
    lines = [
        [f"{estimator}, against {checkout}", *(cell(by_case[one]) if one in by_case else "" for one in names)]
        for (checkout, estimator), by_case in groups.items()
    ]
    return markdown(["CPU time here / there; additional F, products, operators", *names], lines)


def cell(group: Sequence[Mapping[str, Any]]) -> str:
    """Formats the median of the ratios with quartiles, and the differences of the counts."""
    more = ", ".join(f"{group[0][f'more {one.name}']:+.0f}" for one in fields(Counts))
    return f"{median_and_quartiles([row['ratio'] for row in group])}; {more}"


def against(
    checkout: Path,
    cases: list[CaseName] = ALL_CASES,
    repeats: PositiveInt = 20,
    more: list[Path] = [],
    out: Path = Path("logs/against"),
) -> None:
    """This checkout compared with another one, such as an earlier commit.

    Solves the cases of the comparison with peers with the library of each checkout, in interpreters of their own, on
    one thread and to the same tolerances. They take turns, and the CPU time of this checkout is divided by that of each
    other one. Prints medians with quartiles, and how many more applications of F, products with its Jacobian and
    PyTorch operators this checkout takes. Writes a CSV file with every ratio.

    Args:
        checkout: Folder of the other checkout.
        cases: The networks.
        repeats: Number of repeats, at least 2.
        more: Folders of further checkouts.
        out: Folder to write to.

    Raises:
        UserError: If an argument is invalid, or no case could be compared.
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
            except UserError as reason:  # its data set is missing
                print(f"{name}: left out. {reason}", file=sys.stderr)
                continue
            for estimator, how in calibrated.items():
                options = {"name": estimator, "max_steps": MAX_STEPS, "tol": how.tol, "terms": terms(how.tol, radius)}
                request = {"case": {"name": name, "graph": file}, "estimator": options}
                found = rows_of(own, others, request, repeats)
                rows += [{"case": name, "estimator": estimator, **row} for row in found]
                cells = [cell(found[one :: len(others)]) for one in range(len(others))]
                print(f"{name}, {estimator}: {', '.join(cells)}", flush=True)
            write_csv(out / "against.csv", rows)  # keeps what is done
    if not rows:
        raise UserError("No case could be compared.")
    print(table(rows))
