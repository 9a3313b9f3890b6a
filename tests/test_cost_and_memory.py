"""The benchmarks of cost and memory measure what they say."""

import csv
import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from benchmarks import cost, memory
from benchmarks.host_syncs import CountSyncs, syncs_of_rbp
from benchmarks.peak_memory import peak_bytes
from benchmarks.peers.cases import Case, tanh
from benchmarks.step_parts import Parts, timed_parts, timed_whole
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, NeumannRBP, Picard, UserError

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning", "ignore:.*self.trainer")

CPU = torch.device("cpu")
STATE = 64 * 256 * 4
"""Bytes of a state of the cell whose memory is measured."""


@pytest.fixture(scope="module", autouse=True)
def fewer_objects() -> Iterator[None]:
    """Keeps the collections of garbage from going through all that tests have loaded."""
    gc.freeze()
    yield
    gc.unfreeze()


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_peak_bytes_counts_temporaries_and_what_is_released() -> None:
    held = torch.zeros(1000)
    assert peak_bytes(lambda: None, CPU) == 0
    assert peak_bytes(lambda: held.clone() + held.clone(), CPU) == 3 * 4000  # both summands beside the sum
    assert peak_bytes(lambda: [float(torch.ones(1000)[0]) for _ in range(5)], CPU) == 4000
    assert peak_bytes(lambda: [held.clone() for _ in range(5)], CPU) == 5 * 4000
    square = torch.zeros(100, 100)
    assert peak_bytes(lambda: square.logsumexp(1), CPU) > 4 * square.numel()  # exponentials, within the operator


def test_peak_bytes_counts_the_tape_and_the_backward_pass() -> None:
    start = torch.zeros(1000, requires_grad=True)

    def run(steps: int) -> None:
        state = start
        for _ in range(steps):
            state = state.exp()  # keeps its result
        state.backward(torch.ones(1000))

    run(1)  # makes the gradient
    # After the forward pass all states; then the cotangents before and after the last step, and its gradient is added.
    assert peak_bytes(lambda: run(20), CPU) - peak_bytes(lambda: run(10), CPU) == 10 * 4000
    assert 10 * 4000 < peak_bytes(lambda: run(10), CPU) <= 13 * 4000


def test_peak_bytes_do_not_depend_on_when_garbage_is_collected() -> None:
    def run() -> None:
        for _ in range(20):
            ring = [torch.zeros(1000)]
            ring.append(ring)
            [[] for _ in range(10_000)]  # enough objects for a collection

    assert gc.isenabled()
    assert peak_bytes(run, CPU) == 20 * 4000
    assert gc.isenabled()


def test_peak_bytes_on_another_device() -> None:
    with pytest.raises(UserError, match="'meta'"):
        peak_bytes(lambda: None, torch.device("meta"))


@pytest.mark.parametrize("make", [RBP, NeumannRBP, CGRBP, TBPTT])
def test_memory_is_flat_in_the_steps_of_the_solve(make) -> None:
    peaks = {steps: memory.solve_peak(make(solver=Picard(steps, 0.0)), CPU) for steps in (30, 60, 300)}
    assert len(set(peaks.values())) == 1, peaks
    assert peaks[300] > STATE


def test_memory_of_bptt_is_a_state_each_step() -> None:
    few, more, most = (memory.solve_peak(BPTT(Picard(steps, 0.0)), CPU) for steps in (20, 70, 120))
    assert more - few == most - more == 50 * STATE


def test_memory_of_tbptt_is_a_state_each_step_that_is_taped_and_that_of_neumann_is_flat() -> None:
    solver = Picard(130, 0.0)
    few, more, most = (memory.solve_peak(TBPTT(steps, solver), CPU) for steps in (20, 70, 120))
    assert more - few == most - more == 50 * STATE
    assert len({memory.solve_peak(NeumannRBP(steps, solver), CPU) for steps in (10, 20, 120)}) == 1


def test_a_training_step_on_cora_takes_a_tenth_of_the_released_code(data_dir: str, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("RBP_DATA_DIR", data_dir)
    settings = yaml.safe_load(memory.CORA.read_text())
    settings["estimator"]["init_args"]["solver"]["init_args"]["max_steps"] = 21
    (tmp_path / "cora.yaml").write_text(yaml.safe_dump(settings))
    peaks = memory.training_peaks(tmp_path / "cora.yaml", CPU)
    state = 2708 * 64 * 4
    for name in ("RBP", "NeumannRBP(20)", "CGRBP"):
        assert state < peaks[name] < memory.RELEASED_CODE / 10
    assert peaks["BPTT"] > 21 * state  # the gates are kept as well
    assert peaks["BPTT"] > peaks["TBPTT(20)"]


def test_the_tables_of_memory_are_left_behind(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RBP_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network
    memory.main(["--steps", "5", "30", "--terms", "3", "--out", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert "training step on Cora: left out." in printed.err
    rows = read(tmp_path / "out/memory.csv")
    assert [(row["estimator"], row["number"]) for row in rows if row["by"] == "terms"] == [
        ("TBPTT", "3"),
        ("NeumannRBP", "3"),
    ]
    peaks = {row["number"]: float(row["bytes"]) / 2**20 for row in rows if row["estimator"] == "BPTT"}
    assert f"| BPTT | {peaks['5']:.2f} | {peaks['30']:.2f} |" in printed.out
    assert peaks["30"] - peaks["5"] == pytest.approx(25 / 16)
    Image.open(tmp_path / "out/memory.png").verify()


@pytest.mark.parametrize("arguments", [["--steps", "1"], ["--terms", "0"]])
def test_numbers_of_steps_that_cannot_be_measured(arguments: list[str]) -> None:
    with pytest.raises(UserError, match=f"{arguments[0]}={arguments[1]} must be at least"):
        memory.main(arguments)


class Counted(torch.autograd.Function):
    """h <- h / 2 + x, which counts how often it is applied and pulled back."""

    applied = pulled_back = 0

    @staticmethod
    def forward(ctx, state, drive):
        Counted.applied += 1
        return state / 2 + drive

    @staticmethod
    def backward(ctx, cotangent):
        Counted.pulled_back += 1
        return cotangent / 2, cotangent


@pytest.mark.parametrize("steps", [2, 7])
@pytest.mark.parametrize("products", [1, 4])
def test_by_hand_and_by_an_estimator_it_is_as_many_steps_and_products(steps: int, products: int) -> None:
    drive = torch.ones(3, requires_grad=True)
    case = Case([drive], lambda drive: (2 * drive,), Counted.apply, torch.zeros(3), batch_dims=0)
    solver = Picard(steps, 0.0)
    for run in (
        lambda: timed_parts(case, steps, products),
        lambda: timed_whole(case, NeumannRBP(products, solver)),
        lambda: timed_whole(case, RBP(products, 0.0, "gradient", solver=solver)),
    ):
        Counted.applied = Counted.pulled_back = 0
        run()
        assert (Counted.applied, Counted.pulled_back) == (steps, products + 1)  # one more into the parameters


def test_the_sum_of_the_parts() -> None:
    parts = Parts(prepare=1.0, step=2.0, taped=3.0, loss=5.0, product=7.0, sum=13.0, parameters=11.0)
    assert parts.total(steps=4, products=2) == 1 + 3 * 2 + 3 + 5 + 2 * (7 + 13) + 11


def test_a_fit_finds_what_a_step_a_product_and_the_rest_come_to() -> None:
    timings = []
    for repeat, speed in enumerate((1.0, 2.0)):  # the machine is half as fast the second time
        parts = Parts(*(speed * seconds for seconds in (1.0, 2.0, 3.0, 5.0, 7.0, 13.0, 11.0)))
        for steps in (10, 20, 50):
            for products in (5, 20):
                seconds = 1.1 * steps * parts.step + 1.2 * products * (parts.product + parts.sum) + 1.5 * parts.once
                timings.append(cost.Timing("", "NeumannRBP", steps, products, repeat, seconds, parts))
    for found in cost.fits(timings):
        assert found == pytest.approx([1.1, 1.2, 1.5])


def test_syncs_are_reads_of_a_value() -> None:
    values = torch.ones(3)
    with CountSyncs() as syncs:
        assert bool((values.sum() < 4) & (values.max() > 0))
        float(values[0])
    assert syncs.count == 2


def test_a_solve_and_its_gradient_read_the_device_once_in_ten_steps_and_at_the_end() -> None:
    steps, reads, adjoint_steps, adjoint_reads = syncs_of_rbp(tanh(0.8)(torch.float32))
    assert 20 < steps < 1000
    assert 20 < adjoint_steps < 1000
    # Three looks more, and the verdict or the report at the end.
    assert 1 <= reads <= steps // 10 + 4
    assert 1 <= adjoint_reads <= adjoint_steps // 10 + 4


def test_the_tables_of_cost_are_left_behind(tmp_path: Path, capsys) -> None:
    sizes = ["--steps", "3", "6", "--products", "2", "4", "--repeats", "2"]
    cost.main(["--cases", "tanh, radius 0.38", *sizes, "--out", str(tmp_path)])
    printed = capsys.readouterr().out
    for row in ("| tanh, radius 0.38 |", "| tanh, radius 0.38, NeumannRBP(4) |", f"| {cost.SLOW} |"):
        assert row in printed
    rows = read(tmp_path / "cost.csv")
    assert len(rows) == 2 * 3 * 2  # steps, NeumannRBP(2) and (4) and RBP, repeats
    for row in rows:
        assert all(float(row[part]) > 0 for part in ("seconds", "prepare", "step", "taped", "loss", "product"))
    Image.open(tmp_path / "cost.png").verify()


def test_a_case_whose_cost_needs_data_is_left_out(tmp_path: Path, capsys, monkeypatch) -> None:
    monkeypatch.setenv("RBP_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")  # no network
    with pytest.raises(UserError, match="No case could be timed"):
        cost.main(["--cases", "graph network on Cora", "--out", str(tmp_path / "out")])
    assert "graph network on Cora: left out." in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--repeats", "1"], "--repeats=1"),
        (["--steps", "1", "5"], "--steps=.* of at least 2"),
        (["--products", "5", "5"], "--products=.*two different numbers"),
    ],
)
def test_what_gives_no_spread_or_no_fit(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        cost.main(arguments)
