"""The command line of all experiments: ``python -m experiments --help``."""

import sys
from typing import Any

from jsonargparse import auto_cli

from experiments.citation import citation
from experiments.cora_epoch import cora_epoch
from experiments.hypergradient import hypergradient
from experiments.hypergradient_error import hypergradient_error
from experiments.paper.report import paper
from experiments.recall import recall
from experiments.trust import trust
from experiments.warm_start import warm_start
from rbp_lightning.cli.errors import one_line_errors

EXPERIMENTS: dict[str, Any] = {
    "citation": citation,
    "cora_epoch": cora_epoch,
    "hypergradient": hypergradient,
    "hypergradient_error": hypergradient_error,
    "paper": paper,
    "recall": recall,
    "trust": trust,
    "warm_start": warm_start,
}


def main() -> None:
    """Runs the experiment that the command line names."""
    arguments = sys.argv[1:]
    sys.argv = sys.argv[:1]  # the command line of Lightning within an experiment would take them for its own
    with one_line_errors():
        auto_cli(EXPERIMENTS, args=arguments, prog="python -m experiments")


if __name__ == "__main__":
    main()
