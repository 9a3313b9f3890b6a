"""Times and counts solves with the ``rbp_lightning`` of a checkout, on request: ``python worker.py CHECKOUT``.

A request is a line of JSON on standard input, and its answer a line on standard output. The networks are those of the
checkout that this file is in; the other one is only used through its public interface.
"""

import functools
import json
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch.utils.benchmark import Timer

checkout, own = Path(sys.argv[1]).resolve(), Path(__file__).resolve().parents[2]
sys.path[0] = str(checkout)
import rbp_lightning  # noqa: E402

assert Path(rbp_lightning.__file__).is_relative_to(checkout), rbp_lightning.__file__
sys.path[0] = str(own)
from benchmarks.counts import counted  # noqa: E402
from benchmarks.peers.graphs import GRAPH_NETWORKS, Graph  # noqa: E402
from benchmarks.peers.networks import NETWORKS, Case  # noqa: E402


@functools.cache
def make_case(name: str, graph: str | None) -> Case:
    """Makes a case, once.

    Args:
        name: Its name.
        graph: File of the graph; ``None`` if there is none.
    """
    if graph is None:
        return NETWORKS[name](torch.float32)
    return GRAPH_NETWORKS[name](Graph(**torch.load(graph)), torch.float32)


@functools.cache
def make_estimator(name: str, max_steps: int, tol: float, terms: int) -> Any:
    """Makes an estimator, once.

    Args:
        name: Its class.
        max_steps: Step limit of the solve and of the adjoint.
        tol: Tolerance of both.
        terms: Terms of ``NeumannRBP``.
    """
    solver = rbp_lightning.Picard(max_steps, tol)
    if name == "BPTT":
        return rbp_lightning.BPTT(solver)
    if name == "RBP":
        return rbp_lightning.RBP(max_steps, tol, start="gradient", solver=solver)
    if name == "CGRBP":
        return rbp_lightning.CGRBP(max_steps, tol, solver=solver)
    if name == "NeumannRBP":
        return rbp_lightning.NeumannRBP(terms, solver)
    raise ValueError(f"make_estimator does not know {name}: add it.")


def fixed_point(case: Case, solve: Any) -> torch.Tensor:
    """Solves a case by an estimator."""
    update = case.update(case.prepare(*case.parameters))
    state: torch.Tensor = solve(update, case.start, batch_dims=case.batch_dims).state
    return state


def counts(case: dict[str, Any], estimator: dict[str, Any]) -> dict[str, int]:
    """Counts of a solve and its gradient.

    Args:
        case: Arguments of ``make_case``.
        estimator: Arguments of ``make_estimator``.
    """
    solve = make_estimator(**estimator)
    return asdict(counted(make_case(**case), lambda made: fixed_point(made, solve)))


def seconds(case: dict[str, Any], estimator: dict[str, Any], calls: int) -> float:
    """Mean CPU seconds of a solve and its gradient; other programs do not count.

    Args:
        case: Arguments of ``make_case``.
        estimator: Arguments of ``make_estimator``.
        calls: The number of solves to average over.
    """
    made, solve = make_case(**case), make_estimator(**estimator)

    def run() -> None:
        torch.autograd.grad(made.loss(fixed_point(made, solve)), made.parameters)

    return Timer("run()", timer=time.process_time, globals={"run": run}).timeit(calls).mean


ANSWERS: dict[str, Callable[..., Any]] = {"counts": counts, "seconds": seconds}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    for line in sys.stdin:
        request = json.loads(line)
        print(json.dumps(ANSWERS[request.pop("ask")](**request)), flush=True)
