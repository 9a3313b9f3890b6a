"""The experiments of the paper again."""

import logging
import os
import platform
import shlex
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Literal

import torch
from jsonargparse.typing import PositiveInt

from experiments.paper import associative_memory, documents, first_state, hyperparameters, instability
from experiments.paper.findings import Finding, summary, table
from experiments.runs import Row, read_runs, run_missing
from rbp_lightning.errors import UserError

Domain = Literal["associative_memory", "documents", "hyperparameters", "instability", "first_state"]

DOMAINS: dict[Domain, ModuleType] = {
    "associative_memory": associative_memory,
    "documents": documents,
    "hyperparameters": hyperparameters,
    "instability": instability,
    "first_state": first_state,
}

LEGEND = """The paper is Liao et al., ICML 2018. Two estimators differ where their means are more than 0.1% apart and a
paired t-test over the seeds says so, at a level of 5%, uncorrected for the number of comparisons; *cannot be told* is
where they do not differ. Of time and memory, *agrees* is a ratio of the slopes between 0.5 and 2, a growth of less than
10% where there should be none, and a point within 10% of the straight line. Times are those of the machine as it was,
with whatever else ran on it."""


def rows_of(name: Domain, quick: bool, seeds: int | None, folder: Path, run: bool = True) -> list[Row]:
    """Does the runs of a domain that are missing.

    Args:
        name: The domain.
        quick: Whether less is run.
        seeds: How many seeds; ``None`` for as many as the domain is run with.
        folder: Where the CSV file is.
        run: Whether to do them; if not, the runs are those of the file, whatever they were made with.
    """
    domain, path = DOMAINS[name], folder / f"{name}.csv"
    scale = domain.QUICK if quick else domain.FULL
    wanted = scale.wanted(seeds or scale.seeds)
    return (
        run_missing(path, wanted, domain.MEASURED, domain.run)
        if run
        else read_runs(path, list(wanted[0]), domain.MEASURED)
    )


def report(found: dict[Domain, list[Row]], command: str, folder: Path) -> str:
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
    versions = {name: ", ".join(dict.fromkeys(row["version"] for row in rows)) for name, rows in found.items()}
    findings: list[Finding] = [
        replace(finding, version=versions[name])
        for name, rows in found.items()
        for finding in DOMAINS[name].findings(rows)
    ]
    lines += [
        "## The paper's claims",
        "",
        summary(findings),
        "",
    ]
    for name, rows in found.items():
        configs = dict.fromkeys((row["config"], row["overrides"]) for row in rows)
        how = ", ".join(f"`{' '.join(part for part in parts if part)}`" for parts in configs)
        how += f"; version {versions[name]}."
        lines += [f"## {DOMAINS[name].NAME}", "", how, "", DOMAINS[name].section(rows, folder), ""]
    lines += ["## The comparisons, one by one", "", LEGEND, "", table(findings), ""]
    return "\n".join(lines)


def paper(
    domains: list[Domain] = list(DOMAINS),
    quick: bool = False,
    seeds: PositiveInt | None = None,
    out: Path | None = None,
    run: bool = True,
) -> None:
    """The experiments of the paper again.

    Runs associative memory, document classification and hyperparameter optimisation by the five estimators and several
    seeds, and recurrent back-propagation where it may be unstable, and writes a report with tables, pictures, and each
    claim of the paper beside what was found. Finished
    runs are kept in CSV files, one a domain, and not done again unless the config changed, so that what was interrupted
    goes on where it was. Delete them when the code did change.

    Args:
        domains: What to run.
        quick: Whether to take small sizes and short trainings, within 10 minutes.
        seeds: How many seeds, from 0, of each domain; None for as many as it is meant to be run with.
        out: Folder of the report; None for logs/paper, or logs/paper_quick.
        run: Whether to do what is missing; false reports the runs that the files have, of whatever version.

    Raises:
        UserError: If nothing could be run.
    """
    options = [f"--domains={domains}"] * (domains != list(DOMAINS)) + ["--quick=true"] * quick
    options += [f"--seeds={seeds}"] * (seeds is not None) + [f"--out={out}"] * (out is not None)
    options += ["--run=false"] * (not run)
    folder = out or Path("logs/paper_quick" if quick else "logs/paper")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    found: dict[Domain, list[Row]] = {}
    for name in domains:
        try:
            found[name] = rows_of(name, quick, seeds, folder, run)
        except UserError as reason:  # a data set that is not there
            print(f"{name}: left out. {reason}", file=sys.stderr)
    if not found:
        raise UserError("No experiment could be run.")
    text = report(found, shlex.join(["python", "-m", "experiments", "paper", *options]), folder)
    (folder / "REPORT.md").write_text(text)
    print(text)
