"""Two processes that share a cell, whose samples take different numbers of steps: sharded_runs.py is what they do."""

import json
from pathlib import Path
from subprocess import CompletedProcess
from typing import Any

import pytest

from tests.training import run_script

pytestmark = pytest.mark.slow

SCRIPT = """
    from tests.lightning.sharded_runs import main

    if __name__ == "__main__":
        main()
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def finished(folder: Path) -> CompletedProcess[str]:
    return run_script(SCRIPT, folder)


@pytest.fixture(scope="module")
def found(folder: Path, finished: CompletedProcess[str]) -> list[dict[str, Any]]:
    """What each process has found."""
    paths = [folder / f"{rank}.json" for rank in (0, 1)]
    assert all(path.exists() for path in paths), finished.stderr[-5000:]
    return [json.loads(path.read_text()) for path in paths]


def test_no_process_waits_for_another(finished: CompletedProcess[str]) -> None:
    assert "Timeout (" not in finished.stderr, finished.stderr[-5000:]


@pytest.mark.parametrize("kind", ["weights", "gradients", "warm", "tensor_parallel"])
def test_shared_cells_learn_as_whole_ones(kind: str, found: list[dict[str, Any]]) -> None:
    assert found[0][kind] == found[1][kind]
    assert {name: error for name, error in found[0][kind].items() if not error < 1e-6} == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diverged", "status 'diverged' (1 of 4 samples)"),
        ("nan", "status 'nan' (1 of 4 samples)"),
        ("truncated", "an estimated relative error"),
        ("steps", "status 'max_steps' (3 of 4 samples)"),
        ("skipped", "nothing, weights differ by 0.0"),
    ],
)
def test_a_failure_in_one_process_is_one_of_both(name: str, message: str, found: list[dict[str, Any]]) -> None:
    assert message in found[0]["failures"][name]
    assert found[0]["failures"][name] == found[1]["failures"][name]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("second", "leave order at 1"),
        ("forward mode", "no product with its Jacobian"),
        ("sizes", "samples of different sizes"),
    ],
)
def test_what_cannot_be_right_is_refused(name: str, message: str, found: list[dict[str, Any]]) -> None:
    assert all(message in one["refusals"][name] for one in found)


def test_the_monitor_has_the_figures_of_both(found: list[dict[str, Any]]) -> None:
    assert found[0]["monitored"] == found[1]["monitored"]
    sharded, whole = (found[0]["monitored"][strategy] for strategy in ("sharded", "ddp"))
    assert whole == pytest.approx(sharded, rel=1e-6)
    assert sharded["spectral_radius"] > 0.5  # that of the second process's samples; the first one's are next to 0


def test_an_exception_in_one_process_ends_both(finished: CompletedProcess[str], found: list[dict[str, Any]]) -> None:
    assert finished.returncode != 0
    assert "of the second process" in finished.stderr
