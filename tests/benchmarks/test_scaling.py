"""The model of cost at scale, and the measurements beside it."""

import csv
from pathlib import Path

import pytest

from benchmarks.scaling import compare
from benchmarks.scaling.model import Job, Machine, kept_bytes, seconds, sending_seconds, sent_bytes, working_bytes
from benchmarks.scaling.worker import measured, rank_of
from rbp_lightning import UserError

pytestmark = [
    pytest.mark.usefixtures("fewer_objects"),
    pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning"),  # of few products
]

MACHINE = Machine(1e-9, 2e-9, 3e-9, 1e-3, 1e-5, 1e9, gather=1e-3)


def test_time_is_linear_in_steps_products_and_states() -> None:
    assert seconds(Job(10, 5, 10**6, 100), MACHINE) == pytest.approx(0.01 + 0.01 + 0.003 + 0.001)
    assert seconds(Job(10, 5, 2 * 10**6, 100), MACHINE) == pytest.approx(0.046 + 0.001)


def test_a_ring_of_two_sends_half_of_the_gradient_twice_and_of_many_all_of_it_twice() -> None:
    two, many = (Job(10, 5, 1, 10**6, ranks, "ddp") for ranks in (2, 1000))
    assert sent_bytes(two) == 4e6
    assert sent_bytes(many) == pytest.approx(8e6, rel=2e-3)
    assert sending_seconds(two, MACHINE) == pytest.approx(2e-5 + 4e-3)


def test_shards_are_gathered_for_each_step_and_product_or_for_products_alone() -> None:
    each, kept = (Job(10, 5, 1, 10**6, 4, sharing) for sharing in ("fsdp", "fsdp kept"))
    assert sent_bytes(each) == 17 * 3e6  # 10 steps, 5 products, the parameters' gradient, and its reduction
    assert sent_bytes(kept) == 7 * 3e6
    assert kept_bytes(each) == kept_bytes(Job(10, 5, 1, 10**6, 4, "ddp")) / 4 == 3e6
    assert sent_bytes(Job(10, 5, 1, 10**6)) == 0
    assert sending_seconds(kept, MACHINE) == pytest.approx(7 * 3 * 1e-5 + 6 * 1e-3 + 21e-3)


def test_memory_is_that_of_states_whatever_the_number_of_steps() -> None:
    jobs = [Job(*counts, 2**10) for counts in ((10, 5, 2**16), (20, 10, 2**16), (20, 10, 2**18))]
    few, many, larger = (found["bytes"] for found in measured(jobs, 2))
    assert few == many
    assert larger == pytest.approx(working_bytes(jobs[2], Machine(0, 0, 0, 0, states=few / 2**18)), rel=0.05)


def test_the_tables_of_scaling_are_left_behind(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(ranks: int, jobs: list[Job], repeats: int) -> list[dict]:
        # In this process, which has imported what takes new ones seconds; two need a process each.
        jobs = [Job(job.steps, job.products, job.state, job.parameters) for job in jobs]
        found = rank_of(0, 1, tmp_path / "store", jobs, repeats) | {"messages": {100: 1e-4, 1000: 2e-4}}
        return [found] * ranks

    monkeypatch.setattr(compare, "measured_by", alone)
    # So large that a state is much more than a few kilobytes of random generators and of weights.
    compare.scaling(32, [64, 256], repeats=2, devices=[8], out=tmp_path)
    printed = capsys.readouterr().out
    assert "| 8 | fsdp kept |" in printed
    with (tmp_path / "scaling.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sharing"] for row in rows] == ["one"] * 6 + ["ddp", "fsdp", "fsdp kept"]
    predicted, found = ([float(row[name]) for row in rows[:6]] for name in ("predicted_bytes", "bytes"))
    assert predicted == pytest.approx(found, rel=0.5)


def test_one_repeat_has_no_spread() -> None:
    with pytest.raises(UserError, match="--repeats=1"):
        compare.scaling(repeats=1)
