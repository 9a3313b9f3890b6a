"""The effect of torch.compile and mixed precision on a solve and its gradient."""

import functools
import os
import shutil
import sys
import warnings
from pathlib import Path
from typing import Literal

import torch
from jsonargparse.typing import PositiveInt
from torch import Tensor

from benchmarks.compiled.limits import step_limits
from benchmarks.compiled.solves import ENOUGH, Step, solved, solved_in_graphs, summed_in_bfloat16, ten
from benchmarks.devices import DeviceName, available
from benchmarks.peers.cases import CaseName, make_case
from benchmarks.peers.measure import exact_gradient
from benchmarks.report import as_written, median_and_quartiles, write_csv
from benchmarks.timing import check_repeats, interleaved, ratios
from rbp_lightning import ConvergenceWarning, UserError, WarmStart

GRAPH_STEPS = 10
"""Steps in a CUDA graph."""


def error(found: Tensor, exact: Tensor) -> float:
    """Relative error of a gradient."""
    return float((found.double() - exact).norm() / exact.norm())


def measure(name: CaseName, device: torch.device, backend: str, repeats: int) -> list[dict[str, str]]:
    """Measures a case; returns its row of each table, by column."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with torch.device(device):
        case, wide = make_case(name), make_case(name, torch.float64)
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
    found = ratios(interleaved(runs, repeats), "eager")
    times = {one: median_and_quartiles(values) for one, values in found.items()}
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
        **{one: f"{error(value, exact):.1e}" for one, value in zip(columns, errors, strict=True)},
        "adjoint under autocast": str(adjoint.dtype).removeprefix("torch."),
        "time of autocast, as a multiple of float32": times["autocast"],
    }
    rows = [first, second]
    if device.type == "cuda":
        prepared = [tensor.detach() for tensor in case.prepare(*case.parameters)]
        third: dict[str, str] = {"a step's least time over its time": name}
        for one, each in (("eager", case.step), ("F compiled", step)):
            limits = step_limits(each, case.start, prepared)
            third[f"kernels, {one}"] = str(limits.kernels)
            third[f"launches, {one}"] = f"{limits.launching / limits.seconds:.2f}"
            third[f"bytes, {one}"] = f"{limits.moving / limits.seconds:.2f}"
        in_turn = {str(count): functools.partial(solved_in_graphs, case, count) for count in (0, GRAPH_STEPS)}
        graphs_of_steps = ratios(interleaved(in_turn, repeats), "0")[str(GRAPH_STEPS)]
        third["solve to a tolerance in CUDA graphs, as a multiple of eager"] = median_and_quartiles(graphs_of_steps)
        rows.append(third)
    return rows


def check(device: torch.device, backend: str) -> None:
    """Refuses a backend that this machine cannot use.

    Raises:
        UserError: If there is no compiler.
    """
    compilers = [os.environ.get("CXX"), "g++", "clang++"]
    if device.type == "cpu" and backend == "inductor" and not any(shutil.which(one) for one in compilers if one):
        raise UserError("--backend=inductor needs a C++ compiler: install g++, set CXX, or give --backend aot_eager.")


def compiled(
    cases: list[CaseName] = [
        "tanh, radius 0.93",
        "tanh, radius 0.99",
        "Hopfield network",
        "graph network on Cora",
        "convolution",
    ],
    device: DeviceName = "cpu",
    backend: Literal["inductor", "aot_eager"] = "inductor",
    repeats: PositiveInt = 20,
    out: Path = Path("logs/compiled"),
) -> None:
    """The effect of torch.compile and mixed precision on a solve and its gradient.

    Either the update is compiled, or ten of its steps and the taped step; the solve itself stays outside the compiler.
    A forward solve of a fixed number of steps and its gradient by NeumannRBP are timed in turn with the plain update.
    Where no graph was compiled, as for sparse tensors, the update ran as it is. The gradient under autocast to bfloat16
    is compared with the exact one in float64, and so is one whose adjoint is summed in bfloat16 as well. On a CUDA
    device, a table shows how close a step is to the limits of kernel launches and memory, and the time of solves in
    CUDA graphs of ten steps. Prints the tables, and writes them and a CSV file of each.

    Args:
        cases: The networks.
        device: The device to run on.
        backend: Backend of torch.compile.
        repeats: Number of repeats, at least 2.
        out: Folder to write to.

    Raises:
        UserError: If an argument is invalid, or no case could be measured.
    """
    check_repeats(repeats)
    where = available(device)
    check(where, backend)
    torch.set_num_threads(1)
    measured: list[list[dict[str, str]]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # the numbers of steps are fixed
        for name in cases:
            try:
                measured.append(measure(name, where, backend, repeats))
            except UserError as reason:  # its data set is missing
                print(f"{name}: left out. {reason}", file=sys.stderr)
    if not measured:
        raise UserError("No case could be measured.")
    tables = list(zip(*measured, strict=True))
    for rows, file_name in zip(tables, ("compiled", "precision", "limits"), strict=False):
        write_csv(out / f"{file_name}.csv", rows)
    text = "\n\n".join(as_written(rows) for rows in tables)
    (out / "compiled.md").write_text(text + "\n")
    print(text)
