"""Every command and example of the README is run."""

import importlib.util
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
import torch
from PIL import Image

from rbp_lightning import FixedPointSolver, NeumannRBP

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
DOCS = README + "".join(page.read_text() for page in (ROOT / "docs").glob("*.md"))
BIN = Path(sys.executable).parent


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


COMMANDS = [line.split("   #")[0] for block in blocks("sh") for line in block.splitlines()]
DOCS_COMMANDS = [line for block in re.findall(r"```sh\n(.*?)```", DOCS, re.DOTALL) for line in block.splitlines()]
SMALL = [
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.accelerator=cpu",
    "--data.train_draws=2",
    "--data.eval_draws=1",
]


@pytest.mark.parametrize("example", blocks("python"))
def test_python_example(example: str) -> None:
    exec(compile(example, "README.md", "exec"), {"__name__": "readme"})


@pytest.fixture(scope="module")
def checkout(tmp_path_factory) -> Path:
    """A folder to run commands in that leaves no logs in the repository, with one finished run."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in ("configs", "train.py"):
        os.symlink(ROOT / name, folder / name)
    run([*python_command("python train.py fit --config configs/hopfield.yaml"), *SMALL, "--trainer.devices=1"], folder)
    return folder


def run(command: list[str], folder: Path, environment: dict[str, str] | None = None) -> str:
    finished = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert finished.returncode == 0, finished.stderr[-2000:]
    return finished.stdout


def python_command(command: str) -> list[str]:
    assert command.startswith("python ")
    return [sys.executable, *command.split()[1:]]


@pytest.mark.parametrize(
    "command", sorted({command for command in DOCS_COMMANDS if command.startswith("python train.py")})
)
def test_command(command: str, checkout: Path, request) -> None:
    # The commands train with the config's sizes; one epoch of few draws is enough here.
    subcommand = command.split()[2]
    small = SMALL if subcommand == "fit" and "help" not in command else []
    environment = None
    if "hopfield" not in command and small:
        small = [option for option in SMALL if not option.startswith("--data")]
        environment = {**os.environ, "RBP_DATA_DIR": request.getfixturevalue("data_dir")}
    assert run(python_command(command) + small, checkout, environment)


OWN = {"my_estimators": "class DampedNeumann", "my_solvers": "class Damped(", "my_cells": "class HalfOfTheMean"}
OWN["my_graphs"] = "class TwoGroups"


def own_options(checkout: Path, *names: str) -> str:
    """Puts classes of the README into files as it says, and returns the options that it names with them."""
    found = []
    for name in names:
        (example,) = [block for block in blocks("python") if OWN[name] in block]
        assert len(example.splitlines()) < 20
        (checkout / f"{name}.py").write_text(example)
        (options,) = re.findall(rf"`(--\S+ {name}\.[^`]*)`", README)
        found.append(options)
    return " ".join(found)


def test_own_solver_stops_at_its_tolerance() -> None:
    (example,) = [block for block in blocks("python") if OWN["my_solvers"] in block]
    names: dict[str, type[FixedPointSolver]] = {}
    exec(compile(example, "README.md", "exec"), names)
    for factor in (-2.8, 0.8):
        estimator = NeumannRBP(solver=names["Damped"](max_steps=200, tol=1e-4))
        fixed_point = estimator(lambda h, factor=factor: factor * h + 1, torch.zeros(3, 2), batch_dims=1)
        assert fixed_point.converged
        assert fixed_point.steps < 200
        assert float(fixed_point.state[0, 0].detach()) == pytest.approx(1 / (1 - factor), rel=2e-3)


def test_own_estimator_and_solver_on_the_command_line(checkout: Path) -> None:
    options = own_options(checkout, "my_estimators", "my_solvers")
    command = "python train.py fit --config configs/hopfield.yaml " + options
    run([*python_command(command), *SMALL], checkout, {**os.environ, "PYTHONPATH": "."})


def test_own_cell_on_the_command_line(checkout: Path, data_dir: str) -> None:
    options = own_options(checkout, "my_cells")
    command = f"python train.py fit --config configs/cora.yaml {options} --trainer.max_epochs=2"
    run(python_command(command), checkout, {**os.environ, "PYTHONPATH": ".", "RBP_DATA_DIR": data_dir})


def test_own_graph_on_the_command_line(checkout: Path) -> None:
    options = own_options(checkout, "my_graphs")
    command = f"python train.py fit --config configs/cora.yaml {options} --trainer.max_epochs=30"
    printed = run(python_command(command), checkout, {**os.environ, "PYTHONPATH": "."})
    (accuracy,) = re.findall(r"^val/accuracy: (.*)$", printed, re.MULTILINE)
    assert float(accuracy) > 0.9  # the groups are told apart


def test_own_hyperparameter_on_the_command_line(checkout: Path) -> None:
    (example,) = [block for block in blocks("python") if "class Noise" in block]
    (checkout / "my_hyperparameters.py").write_text(example)
    (option,) = re.findall(r"`(--model.hyperparameters\+=[^`]*)`", README)
    command = f"python train.py fit --config configs/hypergrad.yaml {option} --trainer.max_epochs=2"
    printed = run(python_command(command), checkout, {**os.environ, "PYTHONPATH": "."})
    (noise,) = re.findall(r"^hyperparameters/noise: (.*)$", printed, re.MULTILINE)
    assert float(noise) != pytest.approx(0.1, rel=2e-3)  # it learns


def test_own_images(checkout: Path) -> None:
    (checkout / "my_images").mkdir()
    for name in "abcde":
        Image.effect_noise((20, 20), 100).save(checkout / "my_images" / f"{name}.png")
    (options,) = re.findall(r"`(--data.source folder[^`]*)`", README)
    run([*python_command("python train.py fit --config configs/hopfield.yaml " + options), *SMALL], checkout)


def test_yaml_example(checkout: Path) -> None:
    (example,) = blocks("yaml")
    (checkout / "estimator.yaml").write_text(example)
    command = "python train.py fit --config configs/hopfield.yaml --config estimator.yaml"
    run([*python_command(command), *SMALL], checkout)


def test_tensorboard_shows_the_runs(checkout: Path) -> None:
    assert "tensorboard --logdir logs" in COMMANDS
    log = checkout / "tensorboard.log"
    with log.open("w") as file:
        server = subprocess.Popen(
            [str(BIN / "tensorboard"), "--logdir", "logs", "--port", "0", "--host", "127.0.0.1"],
            cwd=checkout,
            stderr=file,
        )
    try:
        deadline = time.monotonic() + 60
        while not (address := re.search(r"http://127\.0\.0\.1:\d+", log.read_text())) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert address, log.read_text()
        while time.monotonic() < deadline:
            runs = urllib.request.urlopen(f"{address[0]}/data/runs").read().decode()
            if "hopfield" in runs:
                break
            time.sleep(0.2)
        assert "hopfield/version_0" in runs
    finally:
        server.send_signal(signal.SIGTERM)
        server.wait()


def test_the_tables_have_a_row_for_each_estimator() -> None:
    tables = [table.splitlines() for table in re.findall(r"((?:^\|.*\n)+)", README, re.MULTILINE)]
    compared = [table for table in tables if any(line.startswith("| NeumannRBP | ") and "±" in line for line in table)]
    assert len(compared) == 3  # recall, citation graphs, the paper's setting
    for table in compared:
        names = [line.split("|")[1].strip().partition("(")[0] for line in table[2:]]
        assert [name for name in names if name != "no propagation"] == ["BPTT", "TBPTT", "RBP", "NeumannRBP", "CGRBP"]
        assert all("±" in line for line in table[2:])


def test_ci_runs_the_two_commands() -> None:
    script = (ROOT / ".ci" / "run").read_text().splitlines()
    made = [command for command in COMMANDS if command.startswith("make ")]
    assert made == ["make demo", "make test"]
    assert set(made) <= set(script)


def test_every_benchmark_that_is_named_exists() -> None:
    report = (ROOT / "benchmarks" / "paper" / "REPORT.md").read_text()
    named = set(re.findall(r"python -m (benchmarks\.\w+)", DOCS + report))
    assert {"benchmarks.peers", "benchmarks.paper", "benchmarks.memory", "benchmarks.cost"} <= named
    for module in (*named, "benchmarks.peers.__main__"):
        assert importlib.util.find_spec(module) is not None, module


def test_the_recall_benchmark(tmp_path: Path) -> None:
    assert "python -m benchmarks.recall" in README
    command = [sys.executable, "-m", "benchmarks.recall", "--estimators", "NeumannRBP", "CGRBP", "--seeds", "2"]
    command += [f"--csv={tmp_path}/recall.csv", f"--trainer.logger.save_dir={tmp_path}", *SMALL]
    printed = run(command, ROOT)
    assert re.search(r"\| CGRBP \| [\d.]+ ± [\d.]+ % \| [\d.]+ ± [\d.]+ % \| \d+ \| 2 \|", printed)
    rows = (tmp_path / "recall.csv").read_text()
    assert run(command, ROOT).endswith(printed[printed.index("| estimator") :])  # from the file, nothing is run again
    assert (tmp_path / "recall.csv").read_text() == rows
    assert len(rows.splitlines()) == 5


def citation_benchmark(module: str, tmp_path: Path, data_dir: str, *options: str) -> tuple[str, Path]:
    """Runs a benchmark of few epochs twice, the second time from its file, and returns what it prints."""
    assert f"python -m benchmarks.{module}" in README
    csv = tmp_path / "runs.csv"
    command = [sys.executable, "-m", f"benchmarks.{module}", f"--csv={csv}", f"--trainer.logger.save_dir={tmp_path}"]
    command += ["--trainer.accelerator=cpu", "--trainer.max_epochs=2", "--trainer.check_val_every_n_epoch=1", *options]
    environment = {**os.environ, "RBP_DATA_DIR": data_dir}
    printed = run(command, ROOT, environment)
    rows = csv.read_text()
    csv.with_suffix(".png").unlink()
    assert run(command, ROOT, environment).splitlines() == printed[printed.index("| ") :].splitlines()
    assert csv.read_text() == rows
    with Image.open(csv.with_suffix(".png")) as picture:
        picture.verify()
    return printed, csv


def test_the_citation_benchmark(tmp_path: Path, data_dir: str) -> None:
    options = ["--configs", "configs/paper/cora.yaml", "--baseline", "--estimators", "RBP:3", "BPTT", "--seeds=2"]
    printed, csv = citation_benchmark("citation", tmp_path, data_dir, *options)
    table = printed[printed.index("| gradient | configs/paper/cora.yaml | seeds |") :].splitlines()
    assert [line.split(" | ")[0] for line in table[2:]] == ["| no propagation", "| RBP(steps=3)", "| BPTT"]
    assert all(re.fullmatch(r"\| .* \| [\d.]+ ± [\d.]+ % \| 2 \|", line) for line in table[2:])
    assert len(csv.read_text().splitlines()) == 7


def test_the_warm_start_benchmark(tmp_path: Path, data_dir: str) -> None:
    printed, _ = citation_benchmark("warm_start", tmp_path, data_dir, "--seeds=1", "--trainer.max_epochs=6")
    steps = [float(found) for found in re.findall(r"^\| [a-z ]+ \| ([\d.]+) \| ", printed, re.MULTILINE)]
    assert len(steps) == 3
    assert steps[0] == 100
    assert steps[0] > steps[1] > steps[2]


def test_the_hypergradient_benchmark(tmp_path: Path) -> None:
    assert "python -m benchmarks.hypergradient" in DOCS
    csv = tmp_path / "runs.csv"
    command = [sys.executable, "-m", "benchmarks.hypergradient", "--config=configs/hypergrad.yaml", f"--csv={csv}"]
    command += ["--estimators", "BPTT", "NeumannRBP:5", "--seeds=2", f"--trainer.logger.save_dir={tmp_path}"]
    command += ["--trainer.max_epochs=2", "--trainer.accelerator=cpu", "--estimator.solver.max_steps=20"]
    printed = run(command, ROOT)
    number = r"[\d.]+ ± [\d.]+"
    row = rf"\| NeumannRBP\(steps=5\) \| {number} \| {number} % \| {number} % \| {number} \| [\d.]+ \| 2 \|"
    assert re.search(row, printed)
    assert len(csv.read_text().splitlines()) == 5


def test_the_benchmark_of_known_hypergradients(tmp_path: Path) -> None:
    assert "python -m benchmarks.hypergradient_error" in DOCS
    command = [sys.executable, "-m", "benchmarks.hypergradient_error", "--steps", "1", "50", "--inner-steps=1000"]
    printed = run([*command, "--lengths", "20", f"--png={tmp_path}/error.png"], ROOT)
    for estimator in ("RBP", "NeumannRBP", "CGRBP", "TBPTT"):
        pairs = re.findall(rf"regression, {estimator}: ([\d.e+-]+), ([\d.e+-]+)$", printed, re.MULTILINE)
        assert len(pairs) == 2
        assert all(float(after) < float(before) / 2 for before, after in pairs)
    assert len(re.findall(r"^\| 20 \| [\d.e+-]+ \| [\d.e+-]+ \| [\d.e+-]+ \|$", printed, re.MULTILINE)) == 2
    with Image.open(tmp_path / "error.png") as picture:
        picture.verify()


def test_the_benchmark_of_the_monitor() -> None:
    assert "python -m benchmarks.monitor" in DOCS
    command = [sys.executable, "-m", "benchmarks.monitor", "--configs", "configs/hopfield.yaml", "--steps=60"]
    printed = run(command, ROOT)
    assert re.search(
        r"^\| configs/hopfield.yaml \| [\d.]+ \| [\d.]+ \| -?[\d.]+ % \| -?[\d.]+ % \|$", printed, re.MULTILINE
    )


def test_the_benchmark_of_trust(tmp_path: Path) -> None:
    assert "python -m benchmarks.trust" in DOCS
    command = [
        sys.executable,
        "-m",
        "benchmarks.trust",
        "--radii",
        "0.5",
        "0.99",
        "1.05",
        f"--png={tmp_path}/trust.png",
    ]
    printed = run(command, ROOT)
    rows = re.findall(r"^\| (\w+)(\(\S+\))? \| (\S+)  \| (\S+) (\(told\))? \| \(told\) \|$", printed, re.MULTILINE)
    assert [row[0] for row in rows] == ["BPTT", "TBPTT", "RBP", "NeumannRBP", "CGRBP", "AdaptiveNeumann"]
    # Whoever is wrong near 1 says so.
    assert all(float(row[2]) < 1e-3 for row in rows)
    assert all(float(row[3]) < 2e-3 or row[4] for row in rows)
    with Image.open(tmp_path / "trust.png") as picture:
        picture.verify()


def test_the_propagation_benchmark() -> None:
    assert "python -m benchmarks.propagation" in README
    printed = run([sys.executable, "-m", "benchmarks.propagation", "--repeats=2", "--width=3"], ROOT)
    assert len(re.findall(r"^\| .* \| [\d.]+ \| [\d.]+ \|$", printed, re.MULTILINE)) == 5
