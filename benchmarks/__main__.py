"""The command line of all benchmarks: ``python -m benchmarks --help``."""

import sys
from typing import Any

from jsonargparse import auto_cli

from benchmarks.against.compare import against
from benchmarks.compiled.compare import compiled
from benchmarks.cost import cost
from benchmarks.import_time import import_time
from benchmarks.memory import memory
from benchmarks.monitor import monitor
from benchmarks.peers.compare import peers
from benchmarks.propagation import propagation
from rbp_lightning.cli.errors import one_line_errors

QUESTIONS: dict[str, Any] = {
    "against": against,
    "compiled": compiled,
    "cost": cost,
    "import_time": import_time,
    "memory": memory,
    "monitor": monitor,
    "peers": peers,
    "propagation": propagation,
}


def main() -> None:
    """Answers the question that the command line names."""
    arguments = sys.argv[1:]
    sys.argv = sys.argv[:1]  # a command line of Lightning within a benchmark would take them for its own
    with one_line_errors():
        auto_cli(QUESTIONS, args=arguments, prog="python -m benchmarks")


if __name__ == "__main__":
    main()
