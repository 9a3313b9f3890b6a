"""The options of ``sweep`` itself; all others are those of ``fit``."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rbp_lightning.cli.sweep.variations import Range, Variation, parse_variation
from rbp_lightning.errors import UserError, check_count

_DESCRIPTION = """Trains a config once for each combination of values and each seed, several at once, and compares them.

All options of `fit` are options of `sweep`, too: `fit --help` lists them."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, f"sweep: {message}.")


def parser(program: str) -> argparse.ArgumentParser:
    """The parser of the options.

    Args:
        program: The name of the program.
    """
    ours = _Parser(f"{program} sweep", description=_DESCRIPTION, allow_abbrev=False)
    ours.formatter_class = argparse.RawDescriptionHelpFormatter
    add = ours.add_argument
    add("--vary", action="append", default=[], metavar="KEY=VALUE,VALUE", help="An option of fit and its values; may be repeated. In a search also KEY=log:LOW:HIGH, KEY=float:LOW:HIGH or KEY=int:LOW:HIGH.")  # fmt: skip # noqa: E501
    add("--seeds", type=int, default=1, help="How many seeds, from 0, for each combination (default: 1).")
    add("--seeded", action="append", default=[], metavar="KEY", help="A further option that is given the seed, such as data.split_seed; may be repeated.")  # fmt: skip # noqa: E501
    add("--metric", help="What is compared, such as val/loss (default: checkpoint.monitor).")
    add(
        "--mode", choices=["min", "max"], help="Whether its least or greatest value is best (default: checkpoint.mode)."
    )
    add("--test", choices=["last", "best"], help="Test each training with its last weights or its best checkpoint.")
    add("--folder", type=Path, default=Path("logs/sweep"), help="Where everything lies (default: logs/sweep).")
    add("--jobs", type=int, help="How many trainings at once (default: one for each GPU or, without any, each core).")
    add("--on", choices=["ray"], help="Run the trainings on a Ray cluster in place of this machine alone.")
    add("--search", choices=["optuna"], help="Search the ranges in place of training all combinations.")
    add("--trials", type=int, default=20, help="How many trainings a search has (default: 20).")
    add("--slurm", action="store_true", help="Print a script for sbatch in place of running anything.")
    add("--only", type=int, metavar="INDEX", help="Run this one training alone, as a task of that script does.")
    return ours


@dataclass(frozen=True)
class SweepOptions:
    """The options of a sweep, checked.

    Attributes:
        vary: What varies.
        seeds: How many seeds.
        seeded: Further options that are given the seed.
        metric: What is compared; ``None`` for the config's.
        mode: ``min``, ``max`` or, for the config's, ``None``.
        test: ``last``, ``best`` or ``None``.
        folder: Where everything lies.
        jobs: How many trainings run at once; ``None`` for as many as fit.
        on: ``ray`` or, for this machine, ``None``.
        search: ``optuna`` or ``None``.
        trials: How many trainings a search has.
        slurm: Whether a script is printed.
        only: The one training to run.
    """

    vary: tuple[Variation | Range, ...]
    seeds: int
    seeded: tuple[str, ...]
    metric: str | None
    mode: str | None
    test: str | None
    folder: Path
    jobs: int | None
    on: str | None
    search: str | None
    trials: int
    slurm: bool
    only: int | None

    @classmethod
    def parse(cls, program: str, words: list[str]) -> tuple["SweepOptions", list[str]]:
        """Parses a sweep's options.

        Args:
            program: The name of the program.
            words: The arguments.

        Returns:
            The options, and the arguments that are left for ``fit``.

        Raises:
            ArgumentError: If an option is wrong.
            UserError: If a value is.
        """
        given, left = parser(program).parse_known_args(words)
        arguments: dict[str, Any] = vars(given)
        arguments["vary"] = tuple(map(parse_variation, given.vary))
        arguments["seeded"] = tuple(given.seeded)
        options = cls(**arguments)
        options._check([word.partition("=")[0] for word in left])
        return options, left

    def _check(self, left: list[str]) -> None:
        check_count(self, "seeds", self.seeds, 1)
        check_count(self, "trials", self.trials, 1)
        if self.jobs is not None:
            check_count(self, "jobs", self.jobs, 1)
        keys = [one.key for one in self.vary]
        if twice := [key for key in keys if keys.count(key) > 1]:
            raise UserError(f"--vary {twice[0]} is given twice: give all its values in one.")
        ranges = [one.key for one in self.vary if isinstance(one, Range)]
        if ranges and self.search is None:
            raise UserError(f"--vary {ranges[0]} has a range: add --search optuna, or list values.")
        if self.search is not None and (not keys or self.seeds > 1 or self.slurm or self.only is not None):
            raise UserError("--search has something to --vary, one seed, and neither --slurm nor --only: correct that.")
        if "--ckpt_path" in left:
            raise UserError("--ckpt_path: the trainings of a sweep start anew or go on by themselves: leave it out.")
