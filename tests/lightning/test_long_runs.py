"""Interrupted and resumed runs of every task equal uninterrupted ones, in one process and in two."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from rbp_lightning.cli.generators import generator_states, set_generator_states
from tests.cli.runs import Zygote, of_ranks
from tests.lightning.long_runs import IN_TWO_PROCESSES, TASKS, run

pytestmark = [
    pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before"),  # like the command line
    pytest.mark.filterwarnings("ignore:The dirpath has changed"),
]

PARTS = ("state_dict", "optimizer_states", "lr_schedulers", "epoch", "global_step", "generators")


def same(one: Any, other: Any) -> bool:
    """Whether contents of checkpoints are equal bit by bit."""
    if isinstance(one, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def assert_resumed(folder: Path, processes: int) -> None:
    whole, cut, resumed = (
        torch.load(folder / name, weights_only=True) for name in ("whole/end.ckpt", "cut/last.ckpt", "resumed/end.ckpt")
    )
    assert 0 < cut["global_step"] < whole["global_step"]
    assert len(whole["generators"]) == processes
    assert not same(cut["state_dict"], whole["state_dict"])
    assert [part for part in PARTS if not same(whole[part], resumed[part])] == []


@pytest.mark.parametrize("task", TASKS)
def test_a_resumed_run_equals_an_uninterrupted_one(task: str, tmp_path: Path) -> None:
    run(task, tmp_path)
    assert_resumed(tmp_path / task, 1)


def test_a_resumed_run_of_two_processes_equals_an_uninterrupted_one(zygote: Zygote, tmp_path: Path) -> None:
    script = Path(__file__).with_name("long_runs.py")
    runs = of_ranks(zygote, tmp_path, [str(tmp_path)], script)
    ended = [one.end(300) for one in runs]
    assert ended == [0, 0], [one.error()[-3000:] for one in runs]
    assert (tmp_path / "done0").exists()
    for task in IN_TWO_PROCESSES:
        assert_resumed(tmp_path / task, 2)


@pytest.mark.parametrize("state", [{"pos": 10**6}, {"pos": -1}, {"key": [0]}])
def test_a_generator_state_that_numpy_would_read_out_of_bounds_is_refused(state: dict[str, Any]) -> None:
    cpu = torch.device("cpu")
    states = generator_states(cpu)
    states["numpy"]["state"].update(state)
    torch.rand(1)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match="NumPy's generator"):
        set_generator_states(states, cpu)
    assert torch.equal(torch.get_rng_state(), before)
