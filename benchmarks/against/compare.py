"""This checkout against another one, such as one of an earlier commit."""

import statistics
import sys
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse.typing import PositiveInt

from benchmarks.asked_process import AskedProcess
from benchmarks.peers.cases import ALL_CASES, CaseName, make_case
from benchmarks.peers.cora import cora
from benchmarks.peers.graphs import GRAPH_NETWORKS
from benchmarks.peers.measure import Calibrated, calibrate, exact_gradient, radius_of
from benchmarks.peers.methods import MAX_STEPS, PAPER, terms
from benchmarks.report import markdown, median_and_quartiles, write_csv
from benchmarks.timing import check_repeats
from rbp_lightning.errors import UserError

OWN = Path(__file__).resolve().parents[2]
ERROR = 1e-3
"""Relative error of the gradient that the tolerances are chosen for."""

SECONDS = 0.1
"""Time that a measurement takes at least, by as many calls as that needs."""


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
        return float(self.ask(calls=calls, **request))


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


def ratios(workers: tuple[Worker, Worker], request: dict[str, Any], repeats: int) -> list[float]:
    """Times the same by both workers, in turn and with either of them first as often.

    Args:
        workers: Of this checkout, and of the other one.
        request: What to solve.
        repeats: How often.

    Returns:
        Times of this checkout over those of the other one next to them.
    """
    once = max(worker.seconds(1, **request) for worker in workers)
    calls = max(1, round(SECONDS / once))
    found = []
    for repeat in range(repeats):
        order = workers if repeat % 2 == 0 else workers[::-1]
        times = {worker: worker.seconds(calls, **request) for worker in order}
        found.append(times[workers[0]] / times[workers[1]])
    return found


def against(
    checkout: Path,
    cases: list[CaseName] = ALL_CASES,
    repeats: PositiveInt = 20,
    out: Path = Path("logs/against"),
) -> None:
    """This checkout against another one, such as one of an earlier commit.

    Solves the cases of the comparison with peers by the library of both checkouts, each in an interpreter of its own,
    on one thread and to the same tolerances. They take turns, and the processor time of this checkout is divided by
    that of the other one next to it. Prints medians with quartiles, and leaves a CSV file with every ratio.

    Args:
        checkout: Folder of the other checkout.
        cases: Networks to compare on.
        repeats: How often each is timed, at least 2.
        out: Folder to write to.

    Raises:
        UserError: If no case could be compared, or an argument is not possible here.
    """
    check_repeats(repeats)
    if not (checkout / "rbp_lightning").is_dir():
        raise UserError(f"checkout={str(checkout)!r} holds no rbp_lightning: give the folder of a checkout.")
    torch.set_num_threads(1)
    found: dict[tuple[str, str], list[float]] = {}
    with ExitStack() as stack:
        workers = (stack.enter_context(Worker(OWN)), stack.enter_context(Worker(checkout)))
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
            for one, how in calibrated.items():
                options = {"name": one, "max_steps": MAX_STEPS, "tol": how.tol, "terms": terms(how.tol, radius)}
                request = {"case": {"name": name, "graph": file}, "estimator": options}
                found[name, one] = ratios(workers, request, repeats)
                print(f"{name}, {one}: {median_and_quartiles(found[name, one], 3)}", flush=True)
    if not found:
        raise UserError("No case could be compared.")
    write_csv(
        out / "against.csv",
        [{"case": name, "estimator": one, "ratio": ratio} for (name, one), values in found.items() for ratio in values],
    )
    names = list(dict.fromkeys(name for name, _ in found))
    rows = [
        [one, *(median_and_quartiles(found[name, one], 3) if (name, one) in found else "" for name in names)]
        for one in PAPER
    ]
    print(markdown(["processor time here / there", *names], rows))
    worst, values = max(found.items(), key=lambda item: statistics.median(item[1]))
    print(f"The slowest of all: {median_and_quartiles(values, 3)}, {worst[1]}, {worst[0]}")
