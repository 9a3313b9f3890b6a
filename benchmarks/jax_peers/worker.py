"""Solves in JAX on request: requests are lines of JSON on standard input, answers are lines on standard output.

It runs in an environment with JAX, which need not have PyTorch: ``python worker.py``.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).resolve().parents[2])
if hasattr(os, "sched_setaffinity"):
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # XLA makes a thread for each core that it sees
import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402

from benchmarks.jax_peers.methods import METHODS  # noqa: E402
from benchmarks.jax_peers.networks import make_case  # noqa: E402


class Worker:
    """One case at a time, and the compiled gradient of each method."""

    def methods(self) -> list[str]:
        """Names of the methods."""
        return list(METHODS)

    def load(self, name: str, file: str) -> float:
        """Takes a case.

        Args:
            name: Its name.
            file: Its arrays, as ``arrays.save`` writes them.

        Returns:
            Relative difference of the state after three steps from that in PyTorch.
        """
        with np.load(file) as found:
            arrays = {key: jnp.asarray(found[key]) for key in found if key != "exact"}
            self.exact = found["exact"]
        self.name, self.start = name, arrays["start"]
        self.parameters = [
            arrays[f"parameter {place}"] for place in range(len(arrays)) if f"parameter {place}" in arrays
        ]
        self.constants = {key[9:]: array for key, array in arrays.items() if key.startswith("constant ")}
        self.compiled: dict[str, Any] = {}
        case = make_case(name, self.start, self.constants)
        state, prepared = case.start, case.prepare(*self.parameters)
        for _ in range(3):
            state = case.step(state, *prepared)
        third = np.asarray(arrays["third"])
        return relative(np.asarray(state), third if case.axes is None else third.transpose(case.axes))

    def compile(self, method: str) -> float:
        """Compiles a method for the case; returns the seconds that it took."""

        def loss(parameters: list[Any], constants: dict[str, Any], start: Any, tol: Any) -> Any:
            case = make_case(self.name, start, constants)
            return jnp.square(METHODS[method](case, case.prepare(*parameters), tol)).mean()

        begin = time.perf_counter()
        self.compiled[method] = jax.jit(jax.grad(loss)).lower(*self.arguments(0.0)).compile()
        return time.perf_counter() - begin

    def arguments(self, tol: float) -> tuple[Any, ...]:
        """The arguments of a compiled method."""
        return self.parameters, self.constants, self.start, jnp.float32(tol)

    def error(self, method: str, tol: float) -> float:
        """Relative error of a compiled method's gradient at a tolerance."""
        gradient = self.compiled[method](*self.arguments(tol))
        found = np.concatenate([np.asarray(leaf, np.float64).ravel() for leaf in gradient])
        return relative(found, self.exact)

    def seconds(self, method: str, tol: float, calls: int) -> float:
        """Mean CPU seconds of a solve and its gradient, after one that is not timed."""
        run, arguments = self.compiled[method], self.arguments(tol)
        jax.block_until_ready(run(*arguments))
        begin = time.process_time()
        for _ in range(calls):
            jax.block_until_ready(run(*arguments))
        return (time.process_time() - begin) / calls


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    """Norm of the difference, relative to that of the second array."""
    return float(np.linalg.norm(found.astype(np.float64) - wanted) / np.linalg.norm(wanted))


def answer(worker: Worker, request: dict[str, Any]) -> dict[str, Any]:
    """Answers a request, or says why it fails."""
    try:
        return {"answer": getattr(worker, request.pop("ask"))(**request)}
    except Exception as reason:  # packages raise exceptions of their own
        return {"failure": f"{type(reason).__name__}: {(str(reason).splitlines() or [''])[0][:80]}"}


if __name__ == "__main__":
    worker = Worker()
    for line in sys.stdin:
        print(json.dumps(answer(worker, json.loads(line))), flush=True)
