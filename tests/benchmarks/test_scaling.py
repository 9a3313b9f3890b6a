"""The cost model of many devices, and measurements to compare it with."""

import csv
from dataclasses import astuple, replace
from pathlib import Path

import pytest

from benchmarks.scaling import compare
from benchmarks.scaling.model import Job, Machine, kept_bytes, seconds, sending_seconds, sent_bytes, working_bytes
from benchmarks.scaling.worker import measured, rank_of
from experiments.tables import laid_out
from rbp_lightning import UserError
from tests.markdown import rows_of

pytestmark = [
    pytest.mark.usefixtures("fewer_objects"),
    pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning"),  # few products do not converge
]

MACHINE = Machine(1e-9, 2e-9, 3e-9, 1e-3, 1e-5, 1e9, gather=1e-3, use=1e-4)


def test_predicted_time_is_linear_in_steps_products_and_states() -> None:
    assert seconds(Job(10, 5, 10**6, 100), MACHINE) == pytest.approx(0.01 + 0.01 + 0.003 + 0.001)
    assert seconds(Job(10, 5, 2 * 10**6, 100), MACHINE) == pytest.approx(0.046 + 0.001)


def test_a_ring_all_reduce_sends_twice_the_gradient_less_one_share() -> None:
    two, many = (Job(10, 5, 1, 10**6, ranks, "ddp") for ranks in (2, 1000))
    assert sent_bytes(two) == 4e6
    assert sent_bytes(many) == pytest.approx(8e6, rel=2e-3)
    assert sending_seconds(two, MACHINE) == pytest.approx(2e-5 + 4e-3)


def test_fsdp_gathers_shards_for_each_step_and_product_or_for_products_only() -> None:
    each, kept = (Job(10, 5, 1, 10**6, 4, sharing) for sharing in ("fsdp", "fsdp kept"))
    assert sent_bytes(each) == 17 * 3e6  # 10 steps, 5 products, the parameter gradient, and its reduction
    assert sent_bytes(kept) == 7 * 3e6
    assert kept_bytes(each) == kept_bytes(Job(10, 5, 1, 10**6, 4, "ddp")) / 4 == 3e6
    assert sent_bytes(Job(10, 5, 1, 10**6)) == 0
    assert sending_seconds(kept, MACHINE) == pytest.approx(7 * 3 * 1e-5 + 6 * 1e-3 + 16 * 1e-4 + 21e-3)


def test_the_figures_of_a_machine_are_found_from_what_it_takes() -> None:
    jobs = [Job(*counts, state, 2**16) for state in (2**14, 2**16) for counts in compare.FITTED]
    alone = compare.fitted(jobs, [{"seconds": [seconds(job, MACHINE)], "bytes": 28 * job.state} for job in jobs])
    shared = [Job(10, 5, 2**16, 2**16, 2, sharing) for sharing in compare.SHARED]
    messages = {elements: 2e-5 + 4 * elements / 1e9 for elements in (2**16, 2**20)}
    drift = (0.0, 0.5, 0.1)  # of the machine, which all that take turns meet alike
    found = [{"seconds": [seconds(job, MACHINE) + slower for slower in drift]} for job in shared]
    whole = compare.with_messages(alone, messages, shared, found)
    assert astuple(whole) == pytest.approx(astuple(replace(MACHINE, states=7)))


def test_measured_memory_is_that_of_states_for_any_number_of_steps() -> None:
    jobs = [Job(*counts, 2**10) for counts in ((10, 5, 2**16), (20, 10, 2**16), (20, 10, 2**18))]
    few, many, larger = (found["bytes"] for found in measured(jobs, 2))
    assert few == many
    assert larger == pytest.approx(working_bytes(jobs[2], Machine(0, 0, 0, 0, states=few / 2**18)), rel=0.05)


def test_the_tables_of_scaling_are_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def alone(ranks: int, jobs: list[Job], repeats: int) -> list[dict]:
        # As one rank in this process: imports in new ones would take seconds.
        jobs = [Job(job.steps, job.products, job.state, job.parameters) for job in jobs]
        found = rank_of(0, 1, tmp_path / "store", jobs, repeats) | {"messages": {100: 1e-4, 1000: 2e-4}}
        return [found] * ranks

    monkeypatch.setattr(compare, "measured_by", alone)
    # So large that a state is much larger than the weights and the states of random generators.
    compare.scaling(32, [64, 256], repeats=2, devices=[8], out=tmp_path)
    printed = capsys.readouterr().out
    assert any(row[:2] == ["8", "fsdp kept"] for row in rows_of(printed))
    for name in ("scaling.csv", "scaling_devices.csv"):
        assert laid_out(name, [tmp_path]) in printed
    with (tmp_path / "scaling.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["sharing"] for row in rows] == ["one"] * 6 + ["ddp", "fsdp", "fsdp kept"]
    predicted, found = ([float(row[name]) for row in rows[:6]] for name in ("predicted_bytes", "bytes"))
    assert predicted == pytest.approx(found, rel=0.5)


def test_a_single_repeat_is_refused() -> None:
    with pytest.raises(UserError, match="--repeats=1"):
        compare.scaling(repeats=1)
