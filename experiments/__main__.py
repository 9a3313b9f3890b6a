"""The command line of all experiments: ``python -m experiments --help``."""

from typing import Any

from benchmarks.command_line import run
from experiments.classification import classification
from experiments.cora_epoch import cora_epoch
from experiments.hypergradient import hypergradient
from experiments.hypergradient_error import hypergradient_error
from experiments.hypergradient_products import hypergradient_products
from experiments.one_step.study import one_step
from experiments.paper.report import paper
from experiments.reasoning import reasoning
from experiments.tables import tables
from experiments.trust import trust
from experiments.warm_start import warm_start

EXPERIMENTS: dict[str, Any] = {
    "classification": classification,
    "cora_epoch": cora_epoch,
    "hypergradient": hypergradient,
    "hypergradient_error": hypergradient_error,
    "hypergradient_products": hypergradient_products,
    "one_step": one_step,
    "paper": paper,
    "reasoning": reasoning,
    "tables": tables,
    "trust": trust,
    "warm_start": warm_start,
}


def main() -> None:
    """Runs the experiment that the command line names."""
    run(EXPERIMENTS, "python -m experiments")


if __name__ == "__main__":
    main()
