"""The benchmarks of an epoch on Cora and of compiled steps measure what they say."""

import csv
import re
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks import cora_epoch
from benchmarks.compiled import __main__ as compiled
from benchmarks.compiled.limits import step_limits
from benchmarks.compiled.solves import TenAtATime, solved, ten
from benchmarks.peers.cases import CASES, tanh
from benchmarks.peers.measure import exact_gradient
from rbp_lightning import NeumannRBP, UserError

NUMBER = r"[\d.]+(?:e[+-]\d+)?"
SPREAD = rf"{NUMBER} \(-?{NUMBER}–-?{NUMBER}\)"  # noqa: RUF001


@pytest.fixture
def cora(data_dir: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RBP_DATA_DIR", data_dir)


@pytest.mark.usefixtures("cora")
def test_the_released_way_and_neumann_rbp_are_the_same_gradient() -> None:
    found = {}
    for method in (cora_epoch.RELEASED, "NeumannRBP(20)"):
        training = cora_epoch.Training(method, seed=0, dtype=torch.float64)
        assert training.gradient() == (100, 20)
        found[method] = [parameter.grad for parameter in training.model.parameters()]
    plain, ours = found.values()
    assert len(plain) == 8
    for one, other in zip(plain, ours, strict=True):
        assert one.dtype == torch.float64
        assert float(one.norm()) > 0
        torch.testing.assert_close(other, one, rtol=1e-12, atol=1e-12 * float(one.norm()))


@pytest.mark.usefixtures("cora")
def test_the_table_of_an_epoch(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--epochs=2", "--block=1", "--seeds=1", f"--csv={tmp_path}/cora_epoch.csv"]
    cora_epoch.main(options)
    table = capsys.readouterr().out
    numbers = rf"({NUMBER}) \| ({NUMBER}) \| {SPREAD} \| {NUMBER} \| {NUMBER} % \| [+-]{NUMBER} ± nan"
    found = re.findall(rf"^\| (.*) \| {numbers} \| 1 \|$", table, re.MULTILINE)
    assert [row[0] for row in found] == cora_epoch.METHODS
    steps, products = ([float(row[column]) for row in found] for column in (1, 2))
    assert steps[:2] == [100, 100]
    assert all(one < 100 for one in steps[2:])
    assert products == [20, 20, 20, 6, 2]
    assert "| 1.00 (1.00–1.00) | 1.00 |" in table  # noqa: RUF001
    rows = (tmp_path / "cora_epoch.csv").read_text()
    cora_epoch.main(options)  # from the file
    assert capsys.readouterr().out == table
    assert (tmp_path / "cora_epoch.csv").read_text() == rows


@pytest.mark.parametrize(("option", "what"), [("--epochs=7", "--epochs=7 gives no spread"), ("--block=0", "--block=0")])
def test_epochs_that_make_no_blocks_are_refused(option: str, what: str) -> None:
    with pytest.raises(UserError, match=what):
        cora_epoch.main([option])


def test_the_tables_of_compiled_steps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled.main(["--cases", "tanh, radius 0.38", "--backend=aot_eager", "--repeats=2", f"--out={tmp_path}"])
    printed = capsys.readouterr().out
    assert (tmp_path / "compiled.md").read_text() == printed
    with (tmp_path / "compiled.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["eager"] == "1.00 (1.00–1.00)"  # noqa: RUF001
    assert all(re.fullmatch(SPREAD, row[name]) for name in ("F compiled", "ten steps compiled"))
    assert float(row["gradients differ by"]) < 1e-5
    assert int(row["graphs compiled"]) == 3  # a step with a tape and without one, and ten steps without
    with (tmp_path / "precision.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["adjoint under autocast"] == "float32"
    assert float(row["float32"]) < 1e-5
    assert float(row["float32"]) < float(row["autocast to bfloat16"]) < 0.05
    assert float(row["adjoint in bfloat16, too"]) < 0.05


def test_ten_steps_at_a_time_are_the_same_steps() -> None:
    case = tanh(0.4)(torch.float32)
    for steps in (5, 61, 68):
        assert torch.equal(solved(case, case.step, steps=steps), solved(case, case.step, ten(case.step), steps=steps))
    wide = tanh(0.4)(torch.float64)
    prepared = wide.prepare(*wide.parameters)
    solver = TenAtATime(lambda state: ten(wide.step)(state, *prepared), 61)
    fixed_point = NeumannRBP(60, solver)(wide.update(prepared), wide.start, batch_dims=1)
    assert fixed_point.steps == 61
    found = torch.autograd.grad(wide.loss(fixed_point.state), wide.parameters)
    torch.testing.assert_close(torch.cat([leaf.flatten() for leaf in found]), exact_gradient(wide))


def test_what_the_machine_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--backend=inductor needs a C\+\+ compiler: .* aot_eager"):
        compiled.main([])
    with pytest.raises(UserError, match="--device=cuda needs a CUDA device"):
        compiled.main(["--device=cuda"])
    with pytest.raises(UserError, match="--repeats=1"):
        compiled.main(["--repeats=1"])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_limits_of_a_cuda_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("cuda"):
        case = CASES["tanh, radius 0.38"](torch.float32)
    prepared = [tensor.detach() for tensor in case.prepare(*case.parameters)]
    assert step_limits(case.step, case.start, prepared, calls=10).kernels >= 3  # a product, a sum, a tanh
    options = ["--cases", "tanh, radius 0.38", "--device=cuda", "--backend=aot_eager", "--repeats=2"]
    compiled.main([*options, f"--out={tmp_path}"])
    assert "| kernels, eager |" in capsys.readouterr().out
    assert (tmp_path / "limits.csv").is_file()
