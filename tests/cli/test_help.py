"""The help texts of the command line."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from rbp_lightning.version import __version__
from tests.cli.options import CONFIG, ROOT

ESTIMATORS = ["AdaptiveNeumann", "BPTT", "CGRBP", "ExactAdjoint", "NeumannRBP", "RBP", "TBPTT"]


@pytest.mark.parametrize("columns", [80, 120])
def test_estimator_help_without_a_name_lists_the_estimators(cli, columns, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for arguments in (["--estimator.help"], [f"--config={CONFIG}", "--estimator.help", "--estimator=RBP"]):
        status, out, _ = cli("fit", *arguments)
        assert status == 0
        described = dict(re.findall(r"^(\w+) +(\S.*)$", out, re.MULTILINE))
        assert set(ESTIMATORS) <= set(described)
        assert "--estimator.help" in out  # how to list the options of one
        assert max(map(len, out.splitlines())) <= columns


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--model.help", ["CitationGNN", "HopfieldMemory"]),
        ("--data.help", ["CitationGraph", "ImagePatterns", "MNISTSplits"]),
        ("--trainer.logger.help", ["CSVLogger", "TensorBoardLogger"]),
        ("--optimizer.help", ["Adam", "SGD"]),
    ],
)
def test_help_lists_the_classes_of_an_argument(cli, option, names) -> None:
    status, out, _ = cli("fit", option)
    assert status == 0
    assert set(names) <= {line.split()[0] for line in out.splitlines() if line and line[0] != " "}


@pytest.mark.parametrize("name", ["BPTT", "TBPTT", "RBP", "NeumannRBP", "CGRBP"])
def test_help_of_each_estimator_lists_its_arguments(cli, name) -> None:
    status, out, _ = cli("fit", f"--estimator.help={name}")
    assert status == 0
    assert "--estimator.solver " in out
    assert ("--estimator.steps " in out) == (name != "BPTT")


def test_help_names_the_subcommands_without_importing_pytorch() -> None:
    program = [sys.executable, "-X", "importtime", ROOT / "train.py", "--help"]
    answered = subprocess.run(program, capture_output=True, text=True, timeout=300, check=True)
    for subcommand in ("fit", "sweep", "validate", "test", "predict", "audit"):
        assert re.search(rf"^ +{subcommand} +\w", answered.stdout, re.MULTILINE)
    assert max(map(len, answered.stdout.splitlines())) <= 80
    assert re.search(r"\| +rbp_lightning$", answered.stderr, re.MULTILINE)
    assert not re.search(r"\| +(torch|lightning|numpy|models)$", answered.stderr, re.MULTILINE)


def test_missing_packages_are_reported_with_the_remedy() -> None:
    program = [sys.executable, "-S", ROOT / "train.py", "fit"]  # it leaves the installed packages out
    ended = subprocess.run(program, capture_output=True, text=True, timeout=300, check=False)
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr
    for named in (sys.executable, "torch", "make demo"):
        assert named in ended.stderr


def test_no_arguments_print_the_help(cli) -> None:
    shown = cli("--help")
    assert shown[0] == 0
    assert cli() == (2, *shown[1:])


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("subcommand", ["fit", "audit"])
def test_subcommand_help_fits_the_terminal_and_starts_with_this_project_s_options(
    cli, subcommand, columns, monkeypatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = cli(subcommand, "--help")
    assert status == 0
    assert max(map(len, out.splitlines())) <= columns
    options = re.findall(r"^  (?:-\w \w+, )?(--[\w.]+)(?: [A-Z{[]|,|  |$)", out, re.MULTILINE)
    assert len(options) == len(set(options)) > 50
    audit = ["--error", "--steps"] if subcommand == "audit" else []
    first = [*audit, "--estimator", "--policy.diverged", "--checkpoint.monitor", "--ckpt_path"]
    places = [options.index(option) for option in (*first, "--model", "--config", "--trainer.devices")]
    assert places == sorted(places)
    assert {"--debug", "--checkpoint.mode", "--optimizer", "--trainer.max_epochs"} <= set(options)
    assert "--estimator.help" in out
    assert not re.search(r":\w+:`|``", out)  # markup of docstrings


def test_the_version_is_printed(cli) -> None:
    status, out, _ = cli("--version")
    assert status == 0
    assert out.split()[-1] == __version__


def test_debug_is_not_part_of_a_config(cli) -> None:
    status, out, _ = cli("fit", f"--config={CONFIG}", "--debug", "--print_config")
    assert status == 0
    assert "debug" not in yaml.safe_load(out)
    assert not list(Path().iterdir())
