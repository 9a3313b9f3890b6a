"""Runs that tell which process they were in, wait for each other, fail, or wait to be killed."""

import os
import time
from functools import partial
from pathlib import Path

from benchmarks.command_line import run
from experiments.runs import Row, run_missing

MEASURED = ["process", "square"]


def measure(keys: Row, folder: Path) -> dict[str, int]:
    """Does what the column ``does`` says."""
    (folder / keys["seed"]).touch()
    print("seed", keys["seed"])
    if keys["does"] == "fail":
        raise RuntimeError("a bug of the run")
    if keys["does"] == "meet":  # another run, which is at work at the same time
        _until(lambda: len(list(folder.glob("[0-9]"))) > 1)
    if keys["does"] == "be killed once" and not (folder / "killed").exists():
        (folder / "killed").write_text(str(os.getpid()))
        _until(lambda: False)
    return {"process": os.getpid(), "square": int(keys["seed"]) ** 2}


def _until(reached) -> None:
    for _ in range(6000):
        if reached():
            return
        time.sleep(0.01)
    raise TimeoutError


def own(does: list[str], csv: Path, jobs: int) -> None:
    """Runs as an experiment does."""
    wanted = [{"does": one, "seed": str(seed)} for seed, one in enumerate(does)]
    for row in run_missing(csv, wanted, MEASURED, partial(measure, folder=csv.parent), jobs):
        print(row["seed"], row["square"])


if __name__ == "__main__":
    # As its module, whose functions the workers can import.
    from tests.experiments.own import own as imported

    run({"own": imported}, "own")
