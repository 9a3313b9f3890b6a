"""The subcommand ``sweep``."""

import argparse
import re
from collections.abc import Iterator
from typing import Any

from rbp_lightning.cli.explain import did_you_mean
from rbp_lightning.cli.sweep.grid import Grid
from rbp_lightning.cli.sweep.live_table import LiveTable
from rbp_lightning.cli.sweep.on_ray import RayPool
from rbp_lightning.cli.sweep.options import SweepOptions, parser
from rbp_lightning.cli.sweep.planned import Planner
from rbp_lightning.cli.sweep.pool import Pool, slots
from rbp_lightning.cli.sweep.report import write_report
from rbp_lightning.cli.sweep.search import Search, probes
from rbp_lightning.cli.sweep.slurm import script
from rbp_lightning.cli.sweep.variations import Variation, combinations
from rbp_lightning.errors import UserError
from rbp_lightning.overview import program


def sweep(words: list[str]) -> None:
    """Runs a sweep.

    Args:
        words: Its arguments, and those of ``fit``.

    Raises:
        ArgumentError: If an option is wrong; nothing has been run then.
        UserError: If a value or a file is, or a training failed.
    """
    options, left = SweepOptions.parse(program(), words)
    planner = Planner(left, options)
    searched = options.search is not None
    try:
        varied = (
            probes(options.vary) if searched else combinations([v for v in options.vary if isinstance(v, Variation)])
        )
        planned = [run for values in varied for run in planner.plan(values)]
    except argparse.ArgumentError as error:
        raise argparse.ArgumentError(None, f"{error}{_meant(str(error))}") from error
    if options.slurm:
        print(script(words, len(planned), options.folder))
        return
    if options.only is not None:
        if not 0 <= options.only < len(planned):
            raise UserError(f"--only={options.only}: the sweep has the trainings 0 to {len(planned) - 1}: name one.")
        planned = [planned[options.only]]
    options.folder.mkdir(parents=True, exist_ok=True)
    with LiveTable(options.trials if searched else len(planned), planner.metric) as table:
        source = Search(planner, options, table) if searched else Grid(planned, table)
        compared = (planner.metric, options.test, _class_paths([run.config for run in planned]))
        if options.on == "ray":
            RayPool(options.jobs, *compared).run(source)
        else:
            Pool(slots(options.jobs, options.trials if searched else len(planned), planned[0].config), *compared).run(
                source
            )
    if options.only is None:
        write_report(options.folder, source.ended, planner.metric, planner.mode, searched)
    failed = [one.run for one in source.ended if one.outcome.state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(source.ended)} trainings failed; the first of them printed {failed[0].log}."
        )


def _meant(message: str) -> str:
    """What was probably meant by an option that ``fit`` does not have, if it is one of the sweep's own."""
    unknown = re.search(r"unrecognized arguments: (--[^\s=]+)", message)
    if unknown is None or "Did you mean" in message:  # one of fit's
        return ""
    return did_you_mean(unknown[1], parser("")._option_string_actions)


def _class_paths(node: Any) -> Iterator[str]:
    """The class paths in configurations."""
    if isinstance(node, dict):
        if isinstance(node.get("class_path"), str):
            yield node["class_path"]
        node = list(node.values())
    for child in node if isinstance(node, list) else []:
        yield from _class_paths(child)
