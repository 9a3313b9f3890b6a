"""The options of ``sweep``, beside those of ``fit``."""

import argparse
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rbp_lightning.cli.sweep.variations import Range, Variation, parse_variation
from rbp_lightning.errors import UserError, check_count

_DESCRIPTION = """Trains with every combination of values and every seed, several runs at once, and compares the runs.

All options of `fit` also apply; `fit --help` lists them."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise argparse.ArgumentError(None, f"sweep: {message}.")


def parser(program: str) -> argparse.ArgumentParser:
    """Returns the parser of the sweep's own options.

    Args:
        program: The name of the program.
    """
    options = _Parser(f"{program} sweep", description=_DESCRIPTION, allow_abbrev=False)
    options.formatter_class = argparse.RawDescriptionHelpFormatter
    add = options.add_argument
    add("--vary", action="append", default=[], metavar="KEY=VALUE,VALUE", help="An option of fit and the values to try; may be repeated. With --search, also a range: KEY=log:LOW:HIGH, KEY=float:LOW:HIGH or KEY=int:LOW:HIGH.")  # fmt: skip # noqa: E501
    add("--seeds", type=int, default=1, help="The number of seeds for each combination, counted from 0 (default: 1).")
    add("--seeded", action="append", default=[], metavar="KEY", help="Another option to set to the seed, such as data.split_seed; may be repeated.")  # fmt: skip # noqa: E501
    add("--metric", help="The metric to compare, such as val/loss (default: checkpoint.monitor).")
    add("--mode", choices=["min", "max"], help="Whether a low or a high metric is better (default: checkpoint.mode).")
    add("--test", choices=["last", "best"], help="Test each run with its last weights or its best checkpoint.")
    add("--folder", type=Path, default=Path("logs/sweep"), help="The folder for runs and report (default: logs/sweep).")
    add("--jobs", type=int, help="The number of runs at once (default: one per GPU or, without GPUs, one per core).")
    add("--on", choices=["ray"], help="Run on a Ray cluster instead of this machine.")
    add("--search", choices=["optuna"], help="Search for the best values instead of trying every combination.")
    add("--trials", type=int, default=20, help="The number of trials of a search (default: 20).")
    add("--slurm", action="store_true", help="Print a script for sbatch; run nothing.")
    add("--only", type=int, metavar="INDEX", help="Run only the run of this index, as each task of that script does.")
    return options


@dataclass(frozen=True)
class SweepOptions:
    """The options of a sweep, checked.

    Attributes:
        vary: The options that vary, with their values or ranges.
        seeds: The number of seeds.
        seeded: Other options that are set to the seed.
        metric: The metric that is compared; ``None`` for ``checkpoint.monitor``.
        mode: ``min`` or ``max``; ``None`` for ``checkpoint.mode``.
        test: ``last`` or ``best``; ``None`` for no test.
        folder: The folder for runs and reports.
        jobs: The number of runs at once; ``None`` for one per GPU or core.
        on: ``ray``; ``None`` for this machine.
        search: ``optuna``; ``None`` for a grid.
        trials: The number of trials of a search.
        slurm: Whether to print a script for sbatch.
        only: The index of the only run to run; ``None`` for all.
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
            The options, and the remaining arguments, which are those of ``fit``.

        Raises:
            ArgumentError: If an option is wrong.
            UserError: If a value is wrong.
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
            raise UserError(f"--vary {twice[0]} is given twice: list all its values in one.")
        ranges = [one.key for one in self.vary if isinstance(one, Range)]
        if ranges and self.search is None:
            raise UserError(f"--vary {ranges[0]} has a range: add --search optuna, or list the values.")
        if self.search is not None and (not keys or self.seeds > 1 or self.slurm or self.only is not None):
            raise UserError("--search needs --vary and a single seed, without --slurm and --only: correct these.")
        if "--ckpt_path" in left:
            raise UserError("--ckpt_path: the runs of a sweep start afresh or resume by themselves: leave it out.")
