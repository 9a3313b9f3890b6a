"""The comparison with JAX, most of it without JAX."""

import csv
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.jax_peers.arrays import save
from benchmarks.jax_peers.compare import jax
from benchmarks.peers.cases import ALL_CASES, CaseName, make_case
from benchmarks.timing import in_turn
from rbp_lightning import UserError

PYTHON = Path(__file__).parents[2] / ".venv-jax/bin/python"


def test_an_interpreter_without_jax_is_reported_in_one_line(tmp_path: Path) -> None:
    bare = tmp_path / "python"  # this interpreter without any installed package
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -I -S "$@"\n')
    bare.chmod(0o755)
    with pytest.raises(UserError, match=r"'jax'.*make bench-jax") as raised:
        jax(bare, out=tmp_path)
    assert "\n" not in str(raised.value)


def test_a_missing_interpreter_is_reported(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"python.*make bench-jax"):
        jax(tmp_path / "python", out=tmp_path)


def test_a_single_repeat_is_refused() -> None:
    with pytest.raises(UserError, match="--repeats=1"):
        jax(repeats=1)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.data] if "Cora" in name else []) for name in ALL_CASES]
)
def test_a_case_is_saved_as_arrays(name: CaseName, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    if "Cora" in name:
        request.getfixturevalue("cora")
    case = make_case(name)
    save(tmp_path / "case.npz", case, torch.ones(3, dtype=torch.float64))
    with np.load(tmp_path / "case.npz") as arrays:
        assert len([key for key in arrays if key.startswith("parameter ")]) == len(case.parameters)
        assert np.array_equal(arrays["start"], case.start)
        assert arrays["third"].shape == case.start.shape
        assert np.array_equal(arrays["exact"], np.ones(3))
        assert all(arrays[key].dtype in (np.float32, np.float64, np.int64) for key in arrays)
        if "graph" in name:  # entries are sorted by row
            assert (np.diff(arrays["constant row"]) >= 0).all()
            assert (np.diff(arrays["constant target"]) >= 0).all()


def test_measurements_alternate_and_last_long_enough() -> None:
    asked: list[tuple[str, int]] = []

    def measured(name: str, seconds: float):
        return lambda calls: asked.append((name, calls)) or seconds

    times = in_turn({"slow": measured("slow", 3.0), "fast": measured("fast", 0.01)}, repeats=2)
    assert asked == [("slow", 1), ("fast", 1), *[("slow", 1), ("fast", 10)] * 2]
    assert times == {"slow": [3.0, 3.0], "fast": [0.01, 0.01]}


@pytest.mark.slow
@pytest.mark.skipif(not PYTHON.exists(), reason=f"no {PYTHON}: `make bench-jax` makes it")
def test_the_tables_of_jax_are_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jax(PYTHON, ["tanh, radius 0.38"], [1e-2], repeats=2, out=tmp_path)
    printed = capsys.readouterr().out
    with (tmp_path / "jax.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["failure"] for row in rows] == [""] * len(rows)
    assert all(float(row["error"]) <= 1e-2 and float(row["ratio"]) > 0 for row in rows)
    with (tmp_path / "jax_compilation.csv").open(newline="") as file:
        compilation = {row["method"]: float(row["seconds"]) for row in csv.DictReader(file)}
    assert compilation.keys() < {row["method"] for row in rows}
    assert all(seconds > 0 for seconds in compilation.values())
    assert "tanh, radius 0.38" in printed
    assert (tmp_path / "jax.md").read_text() in printed
