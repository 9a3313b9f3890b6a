"""The benchmark of compiled steps."""

import csv
import shutil
from pathlib import Path

import pytest
import torch

from benchmarks.compiled.compare import compiled
from benchmarks.compiled.limits import step_limits
from benchmarks.compiled.solves import solved, ten
from benchmarks.peers.cases import make_case
from benchmarks.peers.measure import exact_gradient
from benchmarks.peers.networks import tanh
from rbp_lightning import UserError
from tests.markdown import numbers, row_of


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")  # by the compiler
def test_the_tables_of_compiled_steps(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("compare", "solves"):
        monkeypatch.setattr(f"benchmarks.compiled.{module}.ENOUGH", 60)  # for a spectral radius of 0.38
    compiled(["tanh, radius 0.38"], backend="aot_eager", repeats=2, out=tmp_path)
    printed = capsys.readouterr().out
    assert (tmp_path / "compiled.md").read_text() == printed
    with (tmp_path / "compiled.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert numbers(row["eager"])[0] == 1  # ratios to itself
    assert all(numbers(row[name])[0] > 0 for name in ("F compiled", "ten steps compiled"))
    assert float(row["gradients differ by"]) < 1e-5
    # The first step, steps without a tape, the taped step, and ten steps without a tape.
    assert int(row["graphs compiled"]) == 4
    with (tmp_path / "precision.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert row["adjoint under autocast"] == "float32"
    assert float(row["float32"]) < 1e-5
    assert float(row["float32"]) < float(row["autocast to bfloat16"]) < 0.05
    assert float(row["adjoint in bfloat16, too"]) < 0.05


def test_ten_steps_at_a_time_equal_single_steps() -> None:
    case = tanh(0.4)(torch.float32)
    for steps in (5, 61, 68):
        assert torch.equal(solved(case, case.step, steps=steps), solved(case, case.step, ten(case.step), steps=steps))
    wide = tanh(0.4)(torch.float64)
    found = solved(wide, wide.step, ten(wide.step), steps=61, products=60)
    torch.testing.assert_close(found, exact_gradient(wide), rtol=1e-6, atol=1e-9)


def test_missing_compilers_and_devices_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match=r"--backend=inductor.* aot_eager"):
        compiled()
    with pytest.raises(UserError, match="--device=cuda"):
        compiled(device="cuda")
    with pytest.raises(UserError, match="--repeats=1"):
        compiled(repeats=1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_table_of_limits_on_a_cuda_device(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with torch.device("cuda"):
        case = make_case("tanh, radius 0.38")
    prepared = [tensor.detach() for tensor in case.prepare(*case.parameters)]
    assert step_limits(case.step, case.start, prepared, calls=10).kernels >= 3  # a product, a sum, a tanh
    compiled(["tanh, radius 0.38"], device="cuda", backend="aot_eager", repeats=2, out=tmp_path)
    assert row_of(capsys.readouterr().out, "kernels", "eager")
    assert (tmp_path / "limits.csv").is_file()
