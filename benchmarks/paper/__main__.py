"""The experiments of the paper again: ``python -m benchmarks.paper --help``.

Runs associative memory, document classification and hyperparameter optimisation by the five estimators and several
seeds, and writes a report with tables, pictures, and each finding of the paper beside what was measured. Finished runs
are kept in CSV files, one a domain, and not done again unless the config changed, so that what was interrupted goes on
where it was. Delete them when the code did change.
"""

import argparse
import logging
import os
import platform
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.finished_runs import Row, run_missing, seed_count
from benchmarks.paper import associative_memory, documents, hyperparameters
from benchmarks.paper.findings import Finding, table
from rbp_lightning.cli.errors import one_line_errors
from rbp_lightning.errors import UserError

DOMAINS: dict[str, ModuleType] = {
    "associative_memory": associative_memory,
    "documents": documents,
    "hyperparameters": hyperparameters,
}


LEGEND = """The paper is Liao et al., ICML 2018. Two estimators differ where their means are more than 0.1% apart and a
paired t-test over the seeds says so, at a level of 5%, uncorrected for the number of comparisons; *cannot be told* is
where they do not differ. Of time and memory, *agrees* is a ratio of the slopes between 0.5 and 2, a growth of less than
10% where there should be none, and a point within 10% of the straight line. Times are those of the machine as it was,
with whatever else ran on it."""


def rows_of(name: str, quick: bool, seeds: int | None, folder: Path) -> list[Row]:
    """Does the runs of a domain that are missing.

    Args:
        name: The domain.
        quick: Whether less is run.
        seeds: How many seeds; ``None`` for as many as the domain is run with.
        folder: Where the CSV file is.
    """
    domain = DOMAINS[name]
    scale = domain.QUICK if quick else domain.FULL
    return run_missing(folder / f"{name}.csv", scale.wanted(seeds or scale.seeds), domain.MEASURED, domain.run)


def report(found: dict[str, list[Row]], command: str, folder: Path) -> str:
    """Draws the pictures and returns the report, in Markdown.

    Args:
        found: The runs of each domain.
        command: What they were made by.
        folder: Where the pictures go.
    """
    minutes = sum(float(row["minutes"]) for rows in found.values() for row in rows)
    machine = f"{torch.get_num_threads()} thread(s) of {os.cpu_count()} {platform.machine()} cores"
    machine += f", torch {torch.__version__}"
    lines = [
        "# The paper's experiments again",
        "",
        f"`{command}`: {sum(map(len, found.values()))} runs took {minutes:.0f} minutes in all, on {machine}.",
        "",
    ]
    findings: list[Finding] = [finding for name, rows in found.items() for finding in DOMAINS[name].findings(rows)]
    lines += [
        "## Findings",
        "",
        LEGEND,
        "",
        table(findings),
        "",
    ]
    for name, rows in found.items():
        configs = dict.fromkeys((row["config"], row["overrides"]) for row in rows)
        how = ", ".join(f"`{' '.join(part for part in parts if part)}`" for parts in configs)
        lines += [f"## {DOMAINS[name].NAME}", "", f"{how}.", "", DOMAINS[name].section(rows, folder), ""]
    return "\n".join(lines)


def main(args: Sequence[str] | None = None) -> None:
    """Runs what is missing and writes the report."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--domains", nargs="+", choices=DOMAINS, default=list(DOMAINS), help="what to run")
    parser.add_argument("--quick", action="store_true", help="small sizes and short trainings, within 10 minutes")
    parser.add_argument("--seeds", type=seed_count, help="how many seeds, from 0, of each domain")
    parser.add_argument("--out", type=Path, help="folder of the report; logs/paper, or logs/paper_quick")
    options = parser.parse_args(args)
    command = shlex.join(["python", "-m", "benchmarks.paper", *(sys.argv[1:] if args is None else args)])
    sys.argv = sys.argv[:1]
    folder = options.out or Path("logs/paper_quick" if options.quick else "logs/paper")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    found: dict[str, list[Row]] = {}
    for name in options.domains:
        try:
            found[name] = rows_of(name, options.quick, options.seeds, folder)
        except UserError as reason:  # a data set that is not there
            print(f"{name}: left out. {reason}", file=sys.stderr)
    if not found:
        raise UserError("No experiment could be run.")
    text = report(found, command, folder)
    (folder / "REPORT.md").write_text(text)
    print(text)


if __name__ == "__main__":
    with one_line_errors():
        main()
