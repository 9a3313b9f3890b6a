"""What torch.compile and mixed precision do to a solve and its gradient: ``python -m benchmarks.compiled --help``.

The update is compiled, or ten of its steps as one function, in which case its taped step is compiled too; estimators
keep out of the compiler themselves. A forward solve of a fixed number of steps and its gradient by ``NeumannRBP`` are
timed in turn with the update as it is; where no graph was compiled, as of sparse tensors, that is what ran. Under
autocast to bfloat16 the gradient is compared with the exact one in float64, beside one whose adjoint was summed up in
bfloat16, too. On a CUDA device a table says how near a step is to what the device's launches and memory allow.
"""

import argparse
import csv
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.compiled.limits import step_limits
from benchmarks.compiled.solves import ENOUGH, Step, solved, summed_in_bfloat16, ten
from benchmarks.devices import add_device, checked, synchronize
from benchmarks.peers.__main__ import cell
from benchmarks.peers.cases import CASES
from benchmarks.peers.measure import exact_gradient
from rbp_lightning import ConvergenceWarning, UserError, WarmStart
from rbp_lightning.cli.errors import one_line_errors

NAMES = ["tanh, radius 0.93", "tanh, radius 0.99", "Hopfield network", "graph network on Cora", "convolution"]


def ratios(runs: dict[str, Callable[[], Tensor]], device: torch.device, repeats: int) -> dict[str, list[float]]:
    """Times runs in turn; returns their times over that of the first one next to them."""
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(repeats):
        for name, run in runs.items():
            synchronize(device)
            begin = time.perf_counter()
            run()
            synchronize(device)
            times[name].append(time.perf_counter() - begin)
    first = next(iter(times.values()))
    return {name: [own / one for own, one in zip(values, first, strict=True)] for name, values in times.items()}


def error(found: Tensor, exact: Tensor) -> float:
    """Norm of the difference over that of the exact gradient."""
    return float((found.double() - exact).norm() / exact.norm())


def measure(name: str, device: torch.device, backend: str, repeats: int) -> list[dict[str, str]]:
    """Measures a case; returns its row of each table, by column."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.device(device):
        case, wide = CASES[name](torch.float32), CASES[name](torch.float64)
    step: Step = torch.compile(case.step, backend=backend)
    ten_steps: Step = torch.compile(ten(case.step), backend=backend)
    runs = {
        "eager": lambda: solved(case, case.step),
        "F compiled": lambda: solved(case, step),
        "ten steps compiled": lambda: solved(case, step, ten_steps),
        "autocast": lambda: solved(case, case.step, low=True),
    }
    eager, *others, _ = [run() for run in runs.values()]  # compiles
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    times = {one: cell(values) for one, values in ratios(runs, device, repeats).items()}
    first = {
        "time, as a multiple of eager": name,
        **{one: times[one] for one in ("eager", "F compiled", "ten steps compiled")},
        "gradients differ by": f"{max(error(other, eager.double()) for other in others):.1e}",
        "graphs compiled": str(graphs),
    }
    exact, warm_start = exact_gradient(wide), WarmStart()
    errors = [
        solved(case, case.step, low=False, steps=ENOUGH, products=ENOUGH),
        solved(case, case.step, low=True, steps=ENOUGH, products=ENOUGH, warm_start=warm_start),
        summed_in_bfloat16(case),
    ]
    (adjoint,) = warm_start.state_dict()["adjoint"]
    columns = ["float32", "autocast to bfloat16", "adjoint in bfloat16, too"]
    second = {
        "relative error of the gradient": name,
        **{one: f"{error(found, exact):.1e}" for one, found in zip(columns, errors, strict=True)},
        "adjoint under autocast": str(adjoint.dtype).removeprefix("torch."),
        "time of autocast, as a multiple of float32": times["autocast"],
    }
    rows = [first, second]
    if device.type == "cuda":
        prepared = [tensor.detach() for tensor in case.prepare(*case.parameters)]
        third = {"a step's least time over its time": name}
        for one, each in (("eager", case.step), ("F compiled", step)):
            limits = step_limits(each, case.start, prepared)
            third[f"kernels, {one}"] = str(limits.kernels)
            third[f"launches, {one}"] = f"{limits.launching / limits.seconds:.2f}"
            third[f"bytes, {one}"] = f"{limits.moving / limits.seconds:.2f}"
        rows.append(third)
    return rows


def table(rows: Sequence[dict[str, str]]) -> str:
    """Lays rows out as Markdown."""
    lines = [f"| {' | '.join(rows[0])} |", "|---" * len(rows[0]) + "|"]
    return "\n".join([*lines, *(f"| {' | '.join(row.values())} |" for row in rows)])


def check(device: torch.device, backend: str) -> None:
    """Refuses what this machine cannot do.

    Raises:
        UserError: If there is nothing to compile with.
    """
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    if device.type == "cpu" and backend == "inductor" and not any(shutil.which(one) for one in compilers if one):
        raise UserError("--backend=inductor needs a C++ compiler: install g++, set CXX, or give --backend aot_eager.")


def main(args: Sequence[str] | None = None) -> None:
    """Measures, prints the tables, and leaves them and a CSV file of each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--cases", nargs="+", choices=CASES, default=NAMES, help="networks to measure on")
    add_device(parser)
    parser.add_argument("--backend", choices=["inductor", "aot_eager"], default="inductor", help="of torch.compile")
    parser.add_argument("--repeats", type=int, default=20, help="how often each variant is timed, at least 2")
    parser.add_argument("--out", type=Path, default=Path("logs/compiled"), help="folder to write to")
    options = parser.parse_args(args)
    if options.repeats < 2:
        raise UserError(f"--repeats={options.repeats} gives no spread: it must be at least 2.")
    device = checked(options.device)
    check(device, options.backend)
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    measured: list[list[dict[str, str]]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of numbers of steps that are the same for all
        for name in options.cases:
            try:
                measured.append(measure(name, device, options.backend, options.repeats))
            except UserError as reason:  # a data set that is not there
                print(f"{name}: left out. {reason}", file=sys.stderr)
    if not measured:
        raise UserError("No case could be measured.")
    tables = list(zip(*measured, strict=True))
    for rows, file_name in zip(tables, ("compiled", "precision", "limits"), strict=False):
        with (options.out / f"{file_name}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    text = "\n\n".join(table(rows) for rows in tables)
    (options.out / "compiled.md").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
