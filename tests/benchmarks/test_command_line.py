"""The command line of the benchmarks, and the small benchmarks."""

import inspect
import runpy
import sys
from collections.abc import Callable
from pathlib import Path

import docstring_parser
import pytest
import torch

from benchmarks import __main__ as benchmarks
from benchmarks import import_time as timing_of_imports
from benchmarks.monitor import monitor
from benchmarks.propagation import propagation
from benchmarks.reversible import reversible
from benchmarks.timing import interleaved, ratios
from experiments import __main__ as experiments
from experiments.tables import laid_out
from tests.markdown import numbers, row_of, rows_of

ROOT = Path(__file__).parents[2]


@pytest.fixture
def ask(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):
    """Runs a command line in this process; returns the exit status and all that it printed."""

    def run(module, *arguments: str) -> tuple[object, str]:
        monkeypatch.setattr(sys, "argv", ["python", *arguments])
        status: object = 0
        try:
            module.main()
        except SystemExit as stop:
            status = stop.code
        return status, "".join(capsys.readouterr())

    return run


@pytest.mark.parametrize("function", [*benchmarks.QUESTIONS.values(), *experiments.EXPERIMENTS.values()])
def test_every_argument_is_documented(function: Callable[..., None]) -> None:
    described = docstring_parser.parse(inspect.getdoc(function) or "")
    assert described.short_description
    assert [entry.arg_name for entry in described.params] == list(inspect.signature(function).parameters)
    assert all(entry.description for entry in described.params)


@pytest.mark.parametrize("function", [*benchmarks.QUESTIONS.values(), *experiments.EXPERIMENTS.values()])
def test_no_argument_has_the_name_of_an_option_of_the_command_line(function: Callable[..., None]) -> None:
    """Such an option would silently replace the argument."""
    assert not {"config", "print_config", "help"} & set(inspect.signature(function).parameters)


def test_help_lists_the_arguments(ask) -> None:
    status, printed = ask(experiments, "paper", "--help")
    assert status == 0
    assert "--seeds SEEDS" in printed


def test_invalid_options_are_refused_in_one_line(ask) -> None:
    status, printed = ask(benchmarks, "peers", "--repeats=1")
    assert status == 1
    assert printed.startswith("error: --repeats=1")
    assert len(printed.splitlines()) == 1
    status, printed = ask(benchmarks, "peers", "--cases=[nonsense]")
    assert status == 2
    assert "'Hopfield network'" in printed


def test_python_m_benchmarks_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["benchmarks", "propagation", "--repeats=1", "--width=2"])
    with pytest.warns(RuntimeWarning, match="found in sys.modules"):  # this file has imported it
        runpy.run_module("benchmarks.__main__", run_name="__main__", alter_sys=True)
    assert "SparseMatrix" in capsys.readouterr().out


def test_measurements_are_interleaved_and_ratios_are_paired() -> None:
    calls: list[str] = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in ("a", "b")}, repeats=2)
    assert calls == [*"aaabbb"] * 2  # two calls each to warm up
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())
    assert ratios({"a": [1.0, 2.0], "b": [3.0, 4.0]}, "a") == {"a": [1, 1], "b": [3, 2]}


def test_the_table_of_propagation(capsys: pytest.CaptureFixture[str]) -> None:
    propagation(repeats=2, width=3)
    _, *rows = rows_of(capsys.readouterr().out)
    assert len(rows) == 5
    assert all(float(one) > 0 for row in rows for one in row[1:])
    assert rows[0] == ["SparseMatrix", "1.0", "1.0"]  # times are multiples of its own


def test_the_table_of_import_times(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    exec(timing_of_imports.SCRIPT, {})  # whose modules this process has imported
    assert min(numbers(capsys.readouterr().out)) > 0
    script = timing_of_imports.SCRIPT.replace("lightning.pytorch, torch", "json")
    script = script.replace("rbp_lightning.api", "asyncio")
    monkeypatch.setattr(timing_of_imports, "SCRIPT", script)
    timing_of_imports.import_time(repeats=2)
    _, base, added = rows_of(capsys.readouterr().out)
    assert numbers(base[1])[0] > 0
    assert numbers(added[1])[0] > 0


@pytest.mark.slow
def test_the_table_of_the_monitor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    for name, steps in {"LOOK": 2, "PLOT": 4}.items():
        monkeypatch.setattr(f"benchmarks.monitor.{name}", steps)
    monitor(["configs/hopfield.yaml"], steps=12, out=tmp_path)
    printed = capsys.readouterr().out
    assert all(numbers(cell) for cell in row_of(printed, "configs/hopfield.yaml")[1:])
    assert laid_out("monitor.csv", [tmp_path]) in printed


def test_reversible(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    reversible([2, 4], out=tmp_path)
    printed = capsys.readouterr().out
    assert laid_out("reversible.csv", [tmp_path]) in printed
    for dtype in (torch.float32, torch.float64):
        few, many = map(float, row_of(printed, "state", str(dtype).removeprefix("torch."))[1:])
        # Each of the four steps divides twice by 1/2, and rounding errors with it.
        assert 0 < few < many < 2**8 * torch.finfo(dtype).eps
