"""The loop by hand in PyTorch compared with JAX: by hand, with jaxopt and with optimistix."""

import functools
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from jsonargparse.typing import PositiveFloat, PositiveInt
from torch import Tensor

from benchmarks.jax_peers.arrays import save
from benchmarks.jax_peers.asked_worker import AskedWorker
from benchmarks.peers.cases import ALL_CASES, CaseName, make_case
from benchmarks.peers.compare import REFERENCE, Ratios, cell, rows_of, tables
from benchmarks.peers.measure import Calibrated, Setting, calibrate, exact_gradient, gradient, loosest, radius_of
from benchmarks.peers.methods import BY_HAND, OURS, Method
from benchmarks.peers.networks import Case
from benchmarks.report import markdown, write_csv
from benchmarks.timing import Measured, call_timer, check_repeats, in_turn, ratios
from rbp_lightning.errors import UserError

IN_PYTORCH: dict[str, Method] = {
    REFERENCE: BY_HAND[REFERENCE],
    **{name: OURS[name] for name in ("Implicit, the default", "RBP")},
}

ROUNDING = 1e-5
"""Largest relative difference of the states after three steps in JAX and in PyTorch, both in float32."""


def here(case: Case, one: Calibrated, radius: float) -> Measured:
    """Times a method in PyTorch, in CPU seconds."""
    timer = call_timer(lambda: gradient(case, one.method(case, one.tol, radius)), time.process_time)
    return lambda calls: timer.timeit(calls).mean


def there(worker: AskedWorker, method: str, tol: float) -> Measured:
    """Times a method in JAX, in CPU seconds."""
    return lambda calls: float(worker.answer("seconds", method=method, tol=tol, calls=calls))


def error_there(worker: AskedWorker, method: str, tol: float) -> float:
    """Relative error of a method's gradient in JAX."""
    return float(worker.answer("error", method=method, tol=tol))


def compiled(worker: AskedWorker, name: CaseName, case: Case, exact: Tensor) -> dict[str, float]:
    """Hands a case over, and compiles all methods for it.

    Args:
        worker: The interpreter with JAX.
        name: The case.
        case: The case in PyTorch.
        exact: Its exact gradient.

    Returns:
        Seconds to compile each method.

    Raises:
        UserError: If F differs there.
    """
    with TemporaryDirectory() as folder:
        file = Path(folder) / "case.npz"
        save(file, case, exact)
        difference = float(worker.answer("load", name=name, file=str(file)))
    if not difference <= ROUNDING:
        raise UserError(f"Three steps in JAX are {difference:.0e} from those in PyTorch.")
    return {method: float(worker.answer("compile", method=method)) for method in worker.answer("methods")}


def compare(
    name: CaseName, targets: Sequence[float], repeats: int, worker: AskedWorker
) -> Iterator[tuple[float, Ratios, dict[str, Setting], dict[str, float]]]:
    """Compares all methods on a case.

    Args:
        name: The case.
        targets: Relative errors of the gradient.
        repeats: Number of repeats.
        worker: The interpreter with JAX.

    Yields:
        Each error, its ratios, the settings of the methods, and the seconds to compile them.
    """
    case, wide = make_case(name), make_case(name, torch.float64)
    radius, exact = radius_of(wide), exact_gradient(wide)
    compilation = compiled(worker, name, case, exact)
    outcomes: dict[str, list[Any]] = {
        one: calibrate(case, exact, one, method, radius, targets) for one, method in IN_PYTORCH.items()
    }
    for method in compilation:
        error_at = functools.cache(functools.partial(error_there, worker, method))
        outcomes[method] = [loosest(error_at, target) for target in targets]
    for place, target in enumerate(targets):
        at_target = {one: each[place] for one, each in outcomes.items()}
        settings = {one: outcome for one, outcome in at_target.items() if isinstance(outcome, Setting)}
        runs = {
            one: here(case, setting, radius) if isinstance(setting, Calibrated) else there(worker, one, setting.tol)
            for one, setting in settings.items()
        }
        if REFERENCE not in runs:
            print(f"{name}, error {target:g}: left out. {REFERENCE}: {at_target[REFERENCE]}", file=sys.stderr)
            continue
        found = ratios(in_turn(runs, repeats), REFERENCE)
        yield target, {one: found.get(one, outcome) for one, outcome in at_target.items()}, settings, compilation


def table_of_compilation(rows: Sequence[dict[str, Any]]) -> str:
    """Formats the seconds to compile each method as Markdown.

    Args:
        rows: The rows of the file.
    """
    cases, methods = (list(dict.fromkeys(row[name] for row in rows)) for name in ("case", "method"))
    seconds = {(row["case"], row["method"]): f"{float(row['seconds']):.1f}" for row in rows}
    lines = [[one, *(seconds.get((name, one), "") for name in cases)] for one in methods]
    return markdown(["seconds to compile", *cases], lines)


def jax(
    python: Path = Path(".venv-jax/bin/python"),
    cases: list[CaseName] = ALL_CASES,
    errors: list[PositiveFloat] = [1e-3, 1e-5],
    repeats: PositiveInt = 20,
    out: Path = Path("logs/jax"),
) -> None:
    """The loop by hand in PyTorch compared with JAX: by hand, with jaxopt and with optimistix.

    JAX runs in an interpreter of its own, on one thread of a CPU, and gets the same arrays. As in the comparison with
    peers, each method gets the loosest tolerance at which its gradient has the given relative error. The methods take
    turns, and the CPU time of each is divided by that of the loop by hand in PyTorch; compilation is timed separately.
    Prints tables of medians with quartiles, and writes them and two CSV files, with every ratio and with the seconds
    to compile.

    Args:
        python: The interpreter with JAX, as ``make bench-jax`` makes it.
        cases: The networks.
        errors: Relative errors of the gradient; the methods are compared at each.
        repeats: Number of repeats, at least 2.
        out: Folder to write to.

    Raises:
        UserError: If an argument is invalid, or no case could be compared.
    """
    check_repeats(repeats)
    torch.set_num_threads(1)
    compilations: dict[str, dict[str, float]] = {}
    rows = []
    with AskedWorker(python) as worker, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in cases:
            try:
                for target, outcomes, settings, compilation in compare(name, errors, repeats, worker):
                    compilations[name] = compilation
                    cells = ", ".join(f"{one} {cell(outcome)}" for one, outcome in outcomes.items())
                    print(f"{name}, error {target:g}: {cells}", flush=True)
                    rows += rows_of(target, name, outcomes, settings)
                    write_csv(out / "jax.csv", rows)  # keeps what is done
            except UserError as reason:  # its data set is missing
                print(f"{name}: left out. {reason}", file=sys.stderr)
    if not rows:
        raise UserError("No case could be compared.")
    compilation_rows = [
        {"case": name, "method": one, "seconds": seconds}
        for name, each in compilations.items()
        for one, seconds in each.items()
    ]
    write_csv(out / "jax_compilation.csv", compilation_rows)
    text = "\n\n".join([tables(rows), table_of_compilation(compilation_rows)])
    (out / "jax.md").write_text(text + "\n")
    print(text)
