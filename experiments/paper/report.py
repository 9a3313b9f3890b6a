"""The paper's experiments, repeated."""

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

from benchmarks.report import as_written, write_csv
from experiments.paper import associative_memory, documents, first_state, hyperparameters, instability, truncation_cost
from experiments.paper.findings import LEVEL, RELEVANT, Finding, claims, table
from experiments.runs import Row, read_runs, run_missing
from rbp_lightning.errors import UserError

Domain = Literal["associative_memory", "documents", "hyperparameters", "truncation_cost", "instability", "first_state"]

DOMAINS: dict[Domain, ModuleType] = {
    "associative_memory": associative_memory,
    "documents": documents,
    "hyperparameters": hyperparameters,
    "truncation_cost": truncation_cost,
    "instability": instability,
    "first_state": first_state,
}

INTRODUCTION = (
    """The claims are those of Liao et al., *Reviving and Improving Recurrent Back-Propagation* (ICML 2018)."""
)

STARTS = """The unscaled start is a draw from U[0, 1], as in the paper; the scaled start multiplies it by the size of
the gradient, as `RBP` does here. Errors are those of the adjoint, and a range covers all radii and numbers of steps.
[All comparisons](#all-comparisons) are listed at the end."""

LEGEND = f"""Two estimators differ if their means are more than {RELEVANT:.1%} apart and a paired t-test over the seeds
is significant at {LEVEL:.0%}, without correction for the number of comparisons; otherwise the comparison is
*inconclusive*. For time and memory, *agrees* means a ratio of the slopes between {1 / truncation_cost.SLOPES:g} and
{truncation_cost.SLOPES:g}, a growth of less than {truncation_cost.GROWTH:.0%} where there should be none, and a point
within {truncation_cost.GROWTH:.0%} of the straight line. Other programs ran on the machine while times were
measured."""


def rows_of(name: Domain, quick: bool, seeds: int | None, folder: Path, run: bool = True, jobs: int = 1) -> list[Row]:
    """Executes the missing runs of a domain.

    Args:
        name: The domain.
        quick: Whether to use small sizes and short trainings.
        seeds: Number of seeds; ``None`` for the domain's own number.
        folder: The folder of the CSV file.
        run: Whether to execute them; if not, all runs of the file are returned, whatever their settings.
        jobs: Number of runs at once.
    """
    domain, path = DOMAINS[name], folder / f"{name}.csv"
    scale = domain.QUICK if quick else domain.FULL
    wanted = scale.wanted(seeds or scale.seeds)
    return (
        run_missing(path, wanted, domain.MEASURED, domain.run, jobs)
        if run
        else read_runs(path, list(wanted[0]), domain.MEASURED)
    )


def findings_of(found: dict[Domain, list[Row]]) -> list[Finding]:
    """Compares the runs of each domain with the paper's findings."""
    return [
        replace(finding, version=_versions(rows))
        for name, rows in found.items()
        for finding in DOMAINS[name].findings(rows)
    ]


def _versions(rows: list[Row]) -> str:
    return ", ".join(dict.fromkeys(row["version"] for row in rows))


def report(found: dict[Domain, list[Row]], findings: list[Finding], command: str, folder: Path) -> str:
    """Draws the pictures and returns the report, in Markdown.

    Args:
        found: The runs of each domain.
        findings: Their findings.
        command: The command line of the report.
        folder: The folder of the pictures.
    """
    minutes = sum(float(row["minutes"]) for rows in found.values() for row in rows)
    machine = f"{torch.get_num_threads()} of {os.cpu_count()} {platform.machine()} cores"
    machine += f", torch {torch.__version__}"
    lines = [
        "# The paper's experiments again",
        "",
        INTRODUCTION,
        "",
        f"{sum(map(len, found.values()))} runs, {minutes:.0f} minutes in all. Written by `{command}` on {machine}.",
        "",
    ]
    lines += [
        "## The paper's claims",
        "",
        as_written(claims(findings)),
        "",
        STARTS,
        "",
    ]
    for name, rows in found.items():
        configs = dict.fromkeys((row["config"], row["overrides"]) for row in rows)
        how = ", ".join(f"`{' '.join(part for part in parts if part)}`" for parts in configs)
        how += f"; version {_versions(rows)}."
        lines += [f"## {DOMAINS[name].NAME}", "", how, "", DOMAINS[name].section(rows, folder), ""]
    lines += ["## All comparisons", "", LEGEND, "", table(findings), ""]
    return "\n".join(lines)


def paper(
    domains: list[Domain] = list(DOMAINS),
    quick: bool = False,
    seeds: PositiveInt | None = None,
    out: Path | None = None,
    run: bool = True,
    jobs: PositiveInt = 1,
) -> None:
    """The paper's experiments, repeated.

    Runs associative memory, document classification and hyperparameter optimisation with the five estimators and
    several seeds, measures the cost of truncation steps, and runs recurrent back-propagation in settings where it may
    be unstable. Writes a report with tables, pictures, and each claim of the paper next to the result; claims.csv has
    the claims alone. Finished runs are kept in a CSV file per domain, and repeated only if the config changed, so an
    interrupted command continues where it stopped. If the code changed, delete the files.

    Args:
        domains: The experiments to run.
        quick: Whether to use small sizes and short trainings, within 10 minutes.
        seeds: Number of seeds of each domain, counted from 0; None for the domain's own number.
        out: Folder of the report; None for logs/paper, or logs/paper_quick.
        run: Whether to execute missing runs; false reports the runs in the files, of whatever version.
        jobs: Number of runs at once. More than one would falsify the times.

    Raises:
        UserError: If an experiment could not be run; the report has the others.
    """
    options = [f"--domains={domains}"] * (domains != list(DOMAINS)) + ["--quick=true"] * quick
    options += [f"--seeds={seeds}"] * (seeds is not None) + [f"--out={out}"] * (out is not None)
    options += ["--run=false"] * (not run) + [f"--jobs={jobs}"] * (jobs > 1)
    folder = out or Path("logs/paper_quick" if quick else "logs/paper")
    found: dict[Domain, list[Row]] = {}
    left_out: list[str] = []
    for name in domains:
        try:
            found[name] = rows_of(name, quick, seeds, folder, run, jobs)
        except UserError as reason:  # its data set is missing, or a run failed
            left_out.append(name)
            print(f"{name}: left out. {reason}", file=sys.stderr)
    if not found:
        raise UserError("No experiment could be run.")
    findings = findings_of(found)
    text = report(found, findings, shlex.join(["python", "-m", "experiments", "paper", *options]), folder)
    (folder / "REPORT.md").write_text(text)
    write_csv(folder / "claims.csv", claims(findings))
    print(text)
    if left_out:
        raise UserError(f"The report leaves out {', '.join(left_out)}, for the reasons above.")
