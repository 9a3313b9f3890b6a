"""The ``sweep`` subcommand."""

import argparse
import re
from collections.abc import Iterator
from typing import Any

from rbp_lightning.cli.explain import did_you_mean
from rbp_lightning.cli.sweep.grid import Grid
from rbp_lightning.cli.sweep.on_ray import RayPool
from rbp_lightning.cli.sweep.options import SweepOptions, parser
from rbp_lightning.cli.sweep.planned import Planned, Planner
from rbp_lightning.cli.sweep.report import write_report
from rbp_lightning.cli.sweep.run_table import RunTable
from rbp_lightning.cli.sweep.search import Search, probes
from rbp_lightning.cli.sweep.slurm import script
from rbp_lightning.cli.sweep.variations import Variation, combinations
from rbp_lightning.cli.workers import Pool, slots
from rbp_lightning.errors import UserError
from rbp_lightning.overview import program


def sweep(words: list[str]) -> None:
    """Runs a sweep.

    Args:
        words: The arguments of ``sweep`` and of ``fit``.

    Raises:
        ArgumentError: If an option is wrong; nothing has run then.
        UserError: If a value or a file is wrong, or a run failed.
    """
    options, fit_words = SweepOptions.parse(program(), words)
    planner = Planner(fit_words, options)
    searched = options.search is not None
    try:
        listed = [one for one in options.vary if isinstance(one, Variation)]
        varied = probes(options.vary) if searched else combinations(listed)
        planned = [run for values in varied for run in planner.plan(values)]
    except argparse.ArgumentError as error:
        raise argparse.ArgumentError(None, f"{error}{_suggestion(str(error))}") from error
    if options.slurm:
        print(script(words, len(planned), options.folder))
        return
    if options.only is not None:
        if not 0 <= options.only < len(planned):
            raise UserError(f"--only={options.only}: the sweep has the runs 0 to {len(planned) - 1}: name one of them.")
        planned = [planned[options.only]]
    options.folder.mkdir(parents=True, exist_ok=True)
    count = options.trials if searched else len(planned)
    modules = [Planned.__module__, *_modules([run.config for run in planned])]
    table = RunTable(count, planner.metric)
    with table:
        source = Search(planner, options, table) if searched else Grid(planned, table)
        if options.on == "ray":
            RayPool(options.jobs, modules).run(source)
        else:
            gpus = planned[0].config["trainer"]["accelerator"] in ("auto", "gpu", "cuda")
            Pool(slots(options.jobs, count, gpus), modules).run(source)
    if options.only is None:
        write_report(options.folder, source.ended, planner.metric, planner.mode, searched)
    failed = [one.run for one in source.ended if one.outcome.state == "failed"]
    if failed:
        raise UserError(f"{len(failed)} of {len(source.ended)} runs failed; the first one's output: {failed[0].log}.")


def _suggestion(message: str) -> str:
    """Suggests an option of the sweep for one that ``fit`` does not have."""
    unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
    if unknown is None or "Did you mean" in message:  # an option of fit
        return ""
    return did_you_mean(unknown[1], parser("")._option_string_actions)


def _modules(node: Any) -> Iterator[str]:
    """Yields the modules of all class paths in a configuration."""
    if isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"].rpartition(".")[0]
        node = list(node.values())
    for child in node if isinstance(node, list) else []:
        yield from _modules(child)
