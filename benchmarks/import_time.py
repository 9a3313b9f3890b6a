"""The import time of the library, beyond that of its dependencies."""

import subprocess
import sys
from pathlib import Path

from jsonargparse.typing import PositiveInt

from benchmarks.report import markdown, median_and_quartiles
from benchmarks.timing import check_repeats

ROOT = Path(__file__).parents[1]

SCRIPT = """
from time import perf_counter
begin = perf_counter()
import lightning.pytorch, torch
between = perf_counter()
import rbp_lightning.api  # imported by the first use of any name of the package
print(between - begin, perf_counter() - between)
"""


def seconds() -> tuple[float, float]:
    """Imports everything in a fresh interpreter.

    Returns:
        Seconds for Lightning and PyTorch, and those that this library adds.
    """
    printed = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, check=True, cwd=ROOT)
    base, added = map(float, printed.stdout.split())
    return base, added


def import_time(repeats: PositiveInt = 10) -> None:
    """What ``import rbp_lightning`` adds to ``import lightning.pytorch, torch``.

    Both are timed in the same fresh interpreter, one after the other. Prints medians with quartiles.

    Args:
        repeats: Number of interpreters, at least 2.
    """
    check_repeats(repeats)
    seconds()  # compiles missing byte code
    columns = zip(*(seconds() for _ in range(repeats)), strict=True)
    print(
        markdown(
            ["import of", "seconds"],
            [
                [name, median_and_quartiles(values)]
                for name, values in zip(["lightning.pytorch, torch", "rbp_lightning in addition"], columns, strict=True)
            ],
        )
    )
