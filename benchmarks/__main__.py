"""The command line of all benchmarks: ``python -m benchmarks --help``."""

from typing import Any

from benchmarks.against.compare import against
from benchmarks.command_line import run
from benchmarks.compiled.compare import compiled
from benchmarks.cost import cost
from benchmarks.floors import floors
from benchmarks.gradients import gradients
from benchmarks.graph_scale.grow import graphs
from benchmarks.growth.grow import growth
from benchmarks.import_time import import_time
from benchmarks.jax_peers.compare import jax
from benchmarks.memory import memory
from benchmarks.monitor import monitor
from benchmarks.peers.compare import peers
from benchmarks.peers.derivatives import derivatives
from benchmarks.propagation import propagation
from benchmarks.reversible import reversible
from benchmarks.scaling.compare import scaling
from benchmarks.solver_steps import solvers

QUESTIONS: dict[str, Any] = {
    "against": against,
    "compiled": compiled,
    "cost": cost,
    "derivatives": derivatives,
    "floors": floors,
    "gradients": gradients,
    "graphs": graphs,
    "growth": growth,
    "import_time": import_time,
    "jax": jax,
    "memory": memory,
    "monitor": monitor,
    "peers": peers,
    "propagation": propagation,
    "reversible": reversible,
    "scaling": scaling,
    "solvers": solvers,
}


def main() -> None:
    """Runs the benchmark that the command line names."""
    run(QUESTIONS, "python -m benchmarks")


if __name__ == "__main__":
    main()
