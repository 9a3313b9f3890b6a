"""The benchmarks are asked by one command line, and the small ones answer."""

import functools
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path

import docstring_parser
import pytest

from benchmarks import __main__ as benchmarks
from benchmarks import import_time as timing_of_imports
from benchmarks.monitor import monitor
from benchmarks.propagation import propagation
from benchmarks.timing import interleaved, ratios
from experiments import __main__ as experiments
from tests.cli.runs import Run, Zygote

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
def test_every_argument_has_its_help(function: Callable[..., None]) -> None:
    described = docstring_parser.parse(inspect.getdoc(function) or "")
    assert described.short_description
    assert [entry.arg_name for entry in described.params] == list(inspect.signature(function).parameters)
    assert all(entry.description for entry in described.params)


@pytest.mark.parametrize("function", [*benchmarks.QUESTIONS.values(), *experiments.EXPERIMENTS.values()])
def test_every_argument_reaches_its_function(function: Callable[..., None]) -> None:
    """The command line has options of these names, which take the place of an argument in silence."""
    assert not {"config", "print_config", "help"} & set(inspect.signature(function).parameters)


def test_help(ask) -> None:
    status, printed = ask(experiments, "paper", "--help")
    assert status == 0
    assert "--seeds SEEDS" in printed
    assert "How many seeds" in printed


def test_a_mistake_is_one_line_that_says_what_is_possible(ask) -> None:
    status, printed = ask(benchmarks, "peers", "--repeats=1")
    assert (status, printed) == (1, "error: --repeats=1 gives no spread: it must be at least 2.\n")
    status, printed = ask(benchmarks, "peers", "--cases=[nonsense]")
    assert status == 2
    assert "'Hopfield network'" in printed


@pytest.mark.slow
def test_python_m(zygote: Zygote, tmp_path: Path) -> None:
    program = tmp_path / "python_m.py"
    program.write_text("import runpy; runpy.run_module('benchmarks', run_name='__main__', alter_sys=True)")
    run = Run(
        zygote,
        tmp_path,
        ["peers", '--cases=["tanh, radius 0.38"]', "--repeats=2", "--errors=[0.01]", "--out=."],
        {},
        program,
    )
    assert run.end(300) == 0, run.error()
    assert run.printed().endswith((tmp_path / "peers.md").read_text())


def test_ratios_are_to_what_ran_next() -> None:
    calls: list[str] = []
    times = interleaved({name: lambda name=name: calls.append(name) for name in ("a", "b")}, repeats=2)
    assert calls == [*"aaabbb"] * 2  # two to warm up
    assert all(len(values) == 2 and min(values) > 0 for values in times.values())
    assert ratios({"a": [1.0, 2.0], "b": [3.0, 4.0]}, "a") == {"a": [1, 1], "b": [3, 2]}


def test_propagation(capsys: pytest.CaptureFixture[str]) -> None:
    propagation(repeats=2, width=3)
    rows = re.findall(r"^\| (.*) \| [\d.]+ \| [\d.]+ \|$", capsys.readouterr().out, re.MULTILINE)
    assert len(rows) == 5
    assert rows[0] == "SparseMatrix"


@pytest.mark.slow
def test_import_time(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    # One interpreter is timed, and is all of those that would be.
    monkeypatch.setattr(timing_of_imports, "seconds", functools.cache(timing_of_imports.seconds))
    timing_of_imports.import_time(repeats=2)
    found = re.findall(r"^\| .* \| ([\d.]+) \(-?[\d.]+–[\d.]+\) \|$", capsys.readouterr().out, re.MULTILINE)  # noqa: RUF001
    base, added = map(float, found)
    assert base > 0
    assert added > 0


@pytest.mark.slow
def test_monitor(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(sys, "argv", ["benchmarks"])
    monitor(["configs/hopfield.yaml"], steps=60)
    row = r"^\| configs/hopfield.yaml \| [\d.]+ \| [\d.]+ \| -?[\d.]+ % \| -?[\d.]+ % \|$"
    assert re.search(row, capsys.readouterr().out, re.MULTILINE)
