"""The benchmark of memory."""

import csv
import gc
from pathlib import Path

import pytest
import torch
import yaml
from PIL import Image

from benchmarks import memory
from benchmarks.peak_memory import peak_bytes
from rbp_lightning import BPTT, CGRBP, RBP, TBPTT, NeumannRBP, Picard, UserError
from tests.markdown import rows_of

pytestmark = [
    pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning", "ignore:.*self.trainer"),
    pytest.mark.usefixtures("fewer_objects"),
]

CPU = torch.device("cpu")
STATE = 64 * 256 * 4
"""Bytes of one state of the measured cell."""


def test_peak_bytes_include_temporaries_until_they_are_released() -> None:
    held = torch.zeros(1000)
    assert peak_bytes(lambda: None, CPU) == 0
    assert peak_bytes(lambda: held.clone() + held.clone(), CPU) == 3 * 4000  # the sum and both summands
    assert peak_bytes(lambda: [float(torch.ones(1000)[0]) for _ in range(5)], CPU) == 4000
    assert peak_bytes(lambda: [held.clone() for _ in range(5)], CPU) == 5 * 4000
    square = torch.zeros(100, 100)
    assert peak_bytes(lambda: square.logsumexp(1), CPU) > 4 * square.numel()  # the operator stores the exponentials


def test_peak_bytes_include_the_tape_and_the_backward_pass() -> None:
    start = torch.zeros(1000, requires_grad=True)

    def run(steps: int) -> None:
        state = start
        for _ in range(steps):
            state = state.exp()  # saves its result for backward
        state.backward(torch.ones(1000))

    run(1)  # allocates the gradient
    # All states after the forward pass, and up to three cotangents and gradients in the backward pass.
    assert peak_bytes(lambda: run(20), CPU) - peak_bytes(lambda: run(10), CPU) == 10 * 4000
    assert 10 * 4000 < peak_bytes(lambda: run(10), CPU) <= 13 * 4000


def test_peak_bytes_do_not_depend_on_garbage_collection() -> None:
    def run() -> None:
        for _ in range(20):
            ring = [torch.zeros(1000)]
            ring.append(ring)
            [[] for _ in range(10_000)]  # enough objects to trigger a collection

    assert gc.isenabled()
    assert peak_bytes(run, CPU) == 20 * 4000
    assert gc.isenabled()


def test_peak_bytes_on_an_unsupported_device_is_an_error() -> None:
    with pytest.raises(UserError, match="'meta'"):
        peak_bytes(lambda: None, torch.device("meta"))


@pytest.mark.parametrize("make", [RBP, NeumannRBP, CGRBP, TBPTT])
def test_memory_does_not_grow_with_the_steps_of_the_solve(make) -> None:
    peaks = {steps: memory.solve_peak(make(solver=Picard(steps, 0.0)), CPU) for steps in (30, 60, 300)}
    assert len(set(peaks.values())) == 1, peaks
    assert peaks[300] > STATE


def test_memory_of_bptt_is_one_state_per_step() -> None:
    few, more, most = (memory.solve_peak(BPTT(Picard(steps, 0.0)), CPU) for steps in (20, 70, 120))
    assert more - few == most - more == 50 * STATE


def test_memory_of_tbptt_is_one_state_per_taped_step_and_that_of_neumann_rbp_constant() -> None:
    solver = Picard(130, 0.0)
    few, more, most = (memory.solve_peak(TBPTT(steps, solver), CPU) for steps in (20, 70, 120))
    assert more - few == most - more == 50 * STATE
    assert len({memory.solve_peak(NeumannRBP(steps, solver), CPU) for steps in (10, 20, 120)}) == 1


@pytest.mark.data
@pytest.mark.usefixtures("cora")
def test_a_training_step_on_cora_takes_a_tenth_of_the_released_code(tmp_path: Path) -> None:
    settings = yaml.safe_load(memory.CORA.read_text())
    settings["estimator"]["init_args"]["solver"]["init_args"]["max_steps"] = 21
    (tmp_path / "cora.yaml").write_text(yaml.safe_dump(settings))
    peaks = memory.training_peaks(tmp_path / "cora.yaml", CPU)
    state = 2708 * 64 * 4
    for name in ("RBP", "NeumannRBP(20)", "CGRBP"):
        assert state < peaks[name] < memory.RELEASED_CODE / 10
    assert peaks["BPTT"] > 21 * state  # the gates are saved as well
    assert peaks["BPTT"] > peaks["TBPTT(20)"]


@pytest.mark.usefixtures("no_data")
def test_the_tables_of_memory_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    memory.memory([5, 30], [3], out=tmp_path / "out")
    printed = capsys.readouterr()
    assert "training step on Cora: left out." in printed.err
    with (tmp_path / "out/memory.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["estimator"], row["number"]) for row in rows if row["by"] == "terms"] == [
        ("TBPTT", "3"),
        ("NeumannRBP", "3"),
    ]
    peaks = {row["number"]: float(row["bytes"]) / 2**20 for row in rows if row["estimator"] == "BPTT"}
    shown = {row[0]: [float(cell) for cell in row[1:]] for row in rows_of(printed.out) if row[0] == "BPTT"}
    assert shown["BPTT"] == pytest.approx([peaks["5"], peaks["30"]], abs=0.01)
    assert peaks["30"] - peaks["5"] == pytest.approx(25 / 16)
    Image.open(tmp_path / "out/memory.png").verify()


@pytest.mark.parametrize("numbers", [{"steps": [1]}, {"terms": [0]}])
def test_invalid_numbers_of_steps_are_refused(numbers: dict[str, list[int]]) -> None:
    with pytest.raises(UserError, match=r"--(steps=1|terms=0) must be at least"):
        memory.memory(**numbers)
