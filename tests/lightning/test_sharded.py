"""Processes share a cell while their samples need different numbers of steps; they run sharded_runs.py."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.cli.runs import Zygote, of_ranks
from tests.training import PROCESSES

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sharded")


@pytest.fixture(scope="module")
def finished(zygote: Zygote, folder: Path) -> list[int | None]:
    """The exit status of each process."""
    script = Path(__file__).with_name("sharded_runs.py")
    runs = of_ranks(zygote, folder, [], script, PROCESSES)
    ended = [run.end(300) for run in runs]
    (folder / "errors").write_text("\n".join(run.error() for run in runs))
    return ended


@pytest.fixture(scope="module")
def errors(folder: Path, finished: list[int | None]) -> str:
    """What the processes have written to their standard error."""
    return (folder / "errors").read_text()


@pytest.fixture(scope="module")
def found(folder: Path, errors: str) -> list[dict[str, Any]]:
    """The results of each process."""
    paths = [folder / f"{rank}.json" for rank in range(PROCESSES)]
    assert all(path.exists() for path in paths), errors[-5000:]
    return [json.loads(path.read_text()) for path in paths]


def test_no_process_hangs(errors: str) -> None:
    assert "Timeout (" not in errors, errors[-5000:]


@pytest.mark.parametrize("kind", ["weights", "gradients", "warm", "tensor_parallel", "two_dimensional"])
def test_sharded_cells_give_the_gradients_and_weights_of_whole_ones(kind: str, found: list[dict[str, Any]]) -> None:
    assert all(one[kind] == found[0][kind] for one in found)
    assert {name: error for name, error in found[0][kind].items() if not error < 1e-6} == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("diverged", f"status 'diverged' (1 of {2 * PROCESSES} samples)"),
        ("nan", f"status 'nan' (1 of {2 * PROCESSES} samples)"),
        ("truncated", "an estimated relative error"),
        ("steps", f"status 'max_steps' ({{late}} of {2 * PROCESSES} samples)"),
        ("skipped", "nothing, weights differ by 0.0"),
    ],
)
def test_a_failure_in_one_process_is_reported_in_all(name: str, message: str, found: list[dict[str, Any]]) -> None:
    assert message.format(late=found[0]["late"]) in found[0]["failures"][name]
    assert all(one["failures"][name] == found[0]["failures"][name] for one in found)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("second", "leave order at 1"),
        ("forward mode", "neither twice nor in forward mode"),
        ("sizes", "samples of different sizes"),
    ],
)
def test_unsupported_solves_are_refused(name: str, message: str, found: list[dict[str, Any]]) -> None:
    assert all(message in one["refusals"][name] for one in found)


def test_the_monitor_s_metrics_cover_all_processes(found: list[dict[str, Any]]) -> None:
    assert all(one["monitored"] == found[0]["monitored"] for one in found)
    sharded, whole = (found[0]["monitored"][strategy] for strategy in ("sharded", "ddp"))
    assert whole == pytest.approx(sharded, rel=1e-6)
    assert sharded["spectral_radius"] > 0.5  # from the last process; the other ones' samples have nearly 0


def test_a_solve_for_a_picture_runs_in_all_processes(found: list[dict[str, Any]]) -> None:
    assert found[0]["pictures"] == ["thinking_4.png"]


def test_an_exception_in_one_process_ends_all(finished: list[int | None], errors: str, found: list[Any]) -> None:
    assert all(finished)
    assert "of the last process" in errors
