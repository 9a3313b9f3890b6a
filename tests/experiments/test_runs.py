"""The missing runs of an experiment are executed in processes of their own, and kept."""

import csv
import os
import re
import signal
import time
from pathlib import Path

import pytest

from experiments.paper import instability
from experiments.runs import run_missing
from rbp_lightning import UserError
from tests.cli.runs import Run, Zygote
from tests.experiments.own import own

PROGRAM = Path(__file__).with_name("own.py")


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_runs_are_executed_at_the_same_time_and_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.csv"
    own(["meet", "meet"], file, jobs=2)  # a run alone would fail
    found = rows(file)
    assert [row["seed"] for row in found] == ["0", "1"]
    assert len({row["process"] for row in found} | {str(os.getpid())}) == 3
    assert capfd.readouterr().out == "0 0\n1 1\n"
    # What the runs print is in a file of each.
    assert sorted(log.read_text() for log in (tmp_path / "runs_output").iterdir()) == ["seed 0\n", "seed 1\n"]
    # Only what is missing is run.
    own(["meet", "meet", ""], file, jobs=2)
    assert rows(file)[:2] == found
    assert capfd.readouterr().out == "0 0\n1 1\n2 4\n"


def test_a_failing_run_is_named_and_the_others_are_kept(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "runs.csv"
    with pytest.raises(UserError, match=r"^1 of 3 runs .* failed: does=fail, seed=0 \(.*txt\)\. ") as error:
        own(["fail", "", ""], file, jobs=1)
    (log,) = re.findall(r"\((.*txt)\)", str(error.value))
    assert "Traceback" in Path(log).read_text()
    assert f"does=fail, seed=0 failed: RuntimeError: a bug of the run ({log})" in capfd.readouterr().err
    assert [(row["seed"], row["square"]) for row in rows(file)] == [("1", "1"), ("2", "4")]
    # The same command tries it again; in the end, the rows are in order.
    kept = rows(file)
    with pytest.raises(UserError, match="1 of 3"):
        own(["fail", "", ""], file, jobs=1)
    assert rows(file) == kept


def test_a_killed_command_ends_its_runs_and_continues(
    zygote: Zygote, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "runs.csv"
    killed = Run(zygote, tmp_path, ["own", '["be killed once","",""]', str(file), "2"], {}, PROGRAM)
    killed.until(lambda: file.exists() and len(rows(file)) == 2 and (tmp_path / "killed").exists())
    killed.signal(signal.SIGTERM)
    assert killed.end() == 128 + signal.SIGTERM, killed.error()
    assert killed.lines() == ["error: ended by SIGTERM."]
    worker = Path("/proc", (tmp_path / "killed").read_text())
    deadline = time.monotonic() + 60
    while worker.exists():  # until its parent has waited for it
        assert time.monotonic() < deadline
        time.sleep(0.01)
    kept = rows(file)
    assert [row["seed"] for row in kept] == ["1", "2"]
    own(["be killed once", "", ""], file, jobs=1)
    assert capfd.readouterr().out == "0 0\n1 1\n2 4\n"
    found = rows(file)
    assert [row["seed"] for row in found] == ["0", "1", "2"]
    assert found[1:] == kept


def test_runs_in_processes_of_their_own_give_the_same_values(tmp_path: Path) -> None:
    few = f"{instability.SMALL} --trainer.max_epochs=2 --model.num_hidden=16 --trainer.accelerator=cpu"
    keys = {"config": "configs/paper/hopfield.yaml", "overrides": few, "estimator": "NeumannRBP:10", "seed": "1"}
    (found,) = run_missing(tmp_path / "runs.csv", [keys], instability.MEASURED, instability.run)
    expected = {**keys, **{name: str(value) for name, value in instability.run(keys).items()}}
    assert found.pop("minutes")
    del expected["minutes"]
    assert found == expected
