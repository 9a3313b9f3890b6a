"""What the command line says of itself."""

import re
from pathlib import Path

import pytest
import yaml

from rbp_lightning.version import __version__
from tests.cli.options import CONFIG

ESTIMATORS = ["AdaptiveNeumann", "BPTT", "CGRBP", "ExactAdjoint", "NeumannRBP", "RBP", "TBPTT"]


@pytest.mark.parametrize("columns", [80, 120])
def test_help_of_no_estimator_in_particular_lists_them(cli, columns, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    for arguments in (["--estimator.help"], [f"--config={CONFIG}", "--estimator.help", "--estimator=RBP"]):
        status, out, _ = cli("fit", *arguments)
        assert status == 0
        rows, _, hint = out.rstrip().rpartition("\n\n")
        assert hint == "The options of one of them: --estimator.help NAME"
        assert set(ESTIMATORS) <= set(re.findall(r"^(\w+)  ", rows, re.MULTILINE))
        assert re.search(r"^BPTT +\w+", rows, re.MULTILINE)
        assert max(map(len, rows.splitlines())) <= columns


@pytest.mark.parametrize(
    ("option", "names"),
    [
        ("--model.help", ["CitationGNN", "HopfieldMemory"]),
        ("--data.help", ["CitationGraph", "ImagePatterns", "MNISTSplits"]),
        ("--trainer.logger.help", ["CSVLogger", "TensorBoardLogger"]),
        ("--optimizer.help", ["Adam", "SGD"]),
    ],
)
def test_help_lists_the_classes_of_other_arguments(cli, option, names) -> None:
    status, out, _ = cli("fit", option)
    assert status == 0
    assert set(names) <= {line.split()[0] for line in out.splitlines() if line and line[0] != " "}


@pytest.mark.parametrize("name", ["BPTT", "TBPTT", "RBP", "NeumannRBP", "CGRBP"])
def test_help_of_each_estimator_lists_its_arguments(cli, name) -> None:
    status, out, _ = cli("fit", f"--estimator.help={name}")
    assert status == 0
    assert "--estimator.solver SOLVER" in out
    assert ("--estimator.steps STEPS" in out) == (name != "BPTT")


@pytest.mark.parametrize("columns", [80, 120])
def test_help_fits_the_terminal(cli, columns, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    status, out, _ = cli("--help")
    assert status == 0
    assert "audit" in out
    assert max(map(len, out.splitlines())) <= columns
    status, out, _ = cli("fit", "--help")
    assert status == 0
    for option in ("--debug", "--checkpoint.monitor", "--checkpoint.mode", "--policy.diverged", "--estimator.help"):
        assert option in out


def test_version(cli) -> None:
    status, out, _ = cli("--version")
    assert status == 0
    assert out.split()[-1] == __version__


def test_debug_leaves_nothing_in_a_config(cli) -> None:
    status, out, _ = cli("fit", f"--config={CONFIG}", "--debug", "--print_config")
    assert status == 0
    assert "debug" not in yaml.safe_load(out)
    assert not list(Path().iterdir())
