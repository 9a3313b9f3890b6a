"""Everything named in README.md, CONTRIBUTING.md and docs/ exists, and their commands and examples run."""

import re
import runpy
import shlex
import sys
from importlib.metadata import metadata
from inspect import isabstract
from pathlib import Path

import pytest
from jsonargparse import auto_parser
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import rbp_lightning
from benchmarks.__main__ import QUESTIONS
from experiments.__main__ import EXPERIMENTS
from tests.markdown import rows_of

ROOT = Path(__file__).parents[1]
FILES = (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
PAGES = {path.name: path.read_text() for path in FILES}
OWN = PAGES["your_own.md"]

# The commands train with the full sizes of their configs; one epoch with little data is enough here.
SHORT = ["--trainer.max_epochs=1", "--trainer.check_val_every_n_epoch=1", "--trainer.accelerator=cpu"]
NO_CALLBACKS = ["--trainer.callbacks=null"]  # the monitor's plots would take longer than the training
FEW_RUNS = ["--seeds=1", "--trials=1"]
FEW_IMAGES = ["--data.train_draws=2", "--data.eval_draws=1", "--model.num_hidden=16"]
FEW_PUZZLES = ["--data.num_train=32", "--data.batch_size=16", "--data.num_val=2", "--data.num_test=2"]
FEW_PUZZLES += ["--model.eval_steps=[4]", "--trainer.limit_train_batches=1"]
FEW_GRADIENTS = ["--steps=[1]"]
FEW_STEPS = ["--estimator.solver.max_steps=60"]
FEW_LABELLED = ["--data.num_train=128", "--data.num_val=20", "--data.num_test=20"]
SMALL = {
    "configs/big_graph.yaml": ["--data.dataset.num_nodes=500"],
    "configs/data_cleaning.yaml": FEW_STEPS,
    "configs/digits.yaml": FEW_LABELLED,
    "configs/hopfield.yaml": FEW_IMAGES,
    "configs/hypergrad.yaml": FEW_STEPS,
    "configs/mazes.yaml": [*FEW_PUZZLES, "--data.test_cells=[5]"],
    "configs/prefix_sums.yaml": FEW_PUZZLES,
    "configs/sudoku.yaml": FEW_PUZZLES,
}
"""Options that make a config's training short."""
NEEDS_FILES = ("configs/cora.yaml", "configs/paper/cora.yaml", "configs/data_cleaning.yaml")
"""The configs that read the files of a data set."""

pytestmark = pytest.mark.filterwarnings("ignore::rbp_lightning.ConvergenceWarning")  # trainings are cut short


def blocks(language: str, text: str) -> list[str]:
    """The code blocks of a language in a page, except doctests, which pytest runs itself."""
    found = re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)
    return [block for block in found if not block.startswith(">>>")]


def commands(start: str) -> list[str]:
    """All commands in the pages that start with ``start``."""
    code = [block.replace("\\\n", " ") for text in PAGES.values() for block in blocks("sh", text)]
    lines = [line for block in code for line in block.splitlines()]
    lines += re.findall(rf"`({start}[^`]*)`", "".join(PAGES.values()))
    named = {" ".join(line.partition(" #")[0].split()) for line in lines}
    return sorted(line for line in named if line.startswith(start))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder in which to run commands, so that no logs are written to the repository."""
    for name in ("configs", "train.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    return tmp_path


@pytest.mark.parametrize("page", [page for page, text in PAGES.items() if blocks("python", text)])
def test_python_examples_run(page: str, tmp_path: Path) -> None:
    for number, block in enumerate(blocks("python", PAGES[page])):
        file = tmp_path / f"example_{number}.py"
        file.write_text(block)
        runpy.run_path(str(file))


TRAIN = [one for one in commands("python train.py ") if not re.fullmatch(r"python train\.py fit --config \S+", one)]
"""Commands of the pages, except those that only name a config, which the tests of the configs train."""

SEVERAL_DEVICES = [command for command in TRAIN if "--trainer.devices" in command]
LAUNCHED = [command for start in ("torchrun ", "srun ") for command in commands(start)]


@pytest.mark.slow
@pytest.mark.parametrize("command", sorted(set(TRAIN) - set(SEVERAL_DEVICES)))
def test_commands_run(command: str, checkout: Path, cli, monkeypatch, request) -> None:
    subcommand, *options = shlex.split(command)[2:]
    trains = subcommand in ("fit", "sweep") and not any("help" in option for option in options)
    config = options[options.index("--config") + 1] if "--config" in options else ""
    if "--search" in options:
        pytest.importorskip("optuna")
    if trains:
        options += NO_CALLBACKS if options != ["--config", config] else []
        options += FEW_RUNS if subcommand == "sweep" else []
        options += ["--only=0"] if "--vary" in options and "--search" not in options else []  # all are parsed
        options += SHORT + SMALL.get(config, [])
    if config in NEEDS_FILES:
        monkeypatch.setenv("RBP_DATA_DIR", request.getfixturevalue("data_dir"))
    if "--ckpt_path" in options:
        assert cli("fit", "--config", config, *SHORT, *NO_CALLBACKS, *SMALL[config])[0] == 0
    options += SMALL[config] if subcommand in ("test", "audit") else []
    options += FEW_GRADIENTS if subcommand == "audit" and "--help" not in options else []
    status, out, err = cli(subcommand, *options)
    assert status == 0, err
    assert out or "finished: " in err


# Only parsed: other tests train in two processes.
@pytest.mark.usefixtures("checkout")
@pytest.mark.parametrize("command", SEVERAL_DEVICES + LAUNCHED)
def test_commands_for_several_processes_are_parsed(command: str, cli) -> None:
    status, out, err = cli(*shlex.split(command.partition("train.py ")[2]), "--print_config")
    assert status == 0, err
    assert re.search("devices: '?[24]", out)


def test_the_yaml_for_several_machines_is_parsed(checkout: Path, cli) -> None:
    example, *_ = blocks("yml", PAGES["scale.md"])
    (checkout / "machines.yaml").write_text(example)
    status, out, err = cli("fit", "--config=configs/hopfield.yaml", "--config=machines.yaml", "--print_config")
    assert status == 0, err
    assert "num_nodes: 2" in out


@pytest.mark.parametrize(("package", "known"), [("benchmarks", QUESTIONS), ("experiments", EXPERIMENTS)])
def test_named_measurements_exist(package: str, known: dict) -> None:
    named = commands(f"python -m {package} ")
    assert named
    for command in named:
        words = shlex.split(command)[3:]
        if "--help" not in words and "CHECKOUT" not in words:
            auto_parser(known).parse_args([word for word in words if word != "..."])


def test_named_make_targets_and_extras_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = [command.split()[1] for command in commands("make ")]
    assert {"demo", "test"} <= set(targets)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in targets)
    extras = metadata("rbp-lightning").get_all("Provides-Extra") or []
    installed = [name for command in commands("pip install ") for name in re.findall(r"\[(\w+)\]", command)]
    assert installed
    assert set(installed) <= set(extras)


def test_linked_files_and_headings_exist() -> None:
    for file in FILES:
        for target in re.findall(r'(?:\]\(|<img src=")(?!http)([^)"]+)[)"]', PAGES[file.name]):
            path, _, heading = target.partition("#")
            linked = file.parent / path if path else file
            assert linked.exists(), f"{file.name}: {target}"
            titles = re.findall(r"^#+ (.*)$", linked.read_text(), re.MULTILINE) if heading else []
            names = [re.sub(r"[^\w -]", "", title).lower().replace(" ", "-") for title in titles]
            assert heading in ["", *names], f"{file.name}: {target}"


@pytest.mark.parametrize("page", ["README.md", "gradients.md"])
def test_a_table_of_estimators_has_all_of_them(page: str) -> None:
    public = [getattr(rbp_lightning, name) for name in rbp_lightning.__all__]
    classes = [found for found in public if isinstance(found, type) and not isabstract(found)]
    estimators = {found.__name__ for found in classes if issubclass(found, rbp_lightning.GradientEstimator)}
    named = {name for first, *_ in rows_of(PAGES[page]) for name in re.findall(r"`(\w+)", first)}
    assert estimators - named == set()


def test_named_configs_and_library_names_exist() -> None:
    text = "".join(PAGES.values())
    for config in set(re.findall(r"configs/[\w/]+\.yaml", text)):
        assert (ROOT / config).is_file(), config
    for name in set(re.findall(r"`rbp_lightning\.(\w+)", text)):
        assert hasattr(rbp_lightning, name) or (ROOT / "rbp_lightning" / name).is_dir(), name


@pytest.fixture
def fit_own(checkout: Path, cli, monkeypatch):
    """Fits a config with classes from the page, saved and used as the page says; returns the output."""

    def fit(config: str, *modules: str, options: list[str]) -> str:
        for module in modules:
            section = re.search(rf"[Ii]n `{module}\.py`, used as\s+`([^`]*)`.*?```python\n(.*?)```", OWN, re.DOTALL)
            assert section is not None, module
            (checkout / f"{module}.py").write_text(section[2])
            options = [*section[1].split(), *options]
            monkeypatch.delitem(sys.modules, module, raising=False)
        status, out, err = cli("fit", f"--config=configs/{config}.yaml", *options, "--trainer.accelerator=cpu")
        assert status == 0, err
        return out

    return fit


@pytest.mark.parametrize("modules", [("my_linear_solvers", "my_solvers"), ("my_estimators",)])
def test_own_solvers_and_estimators_on_the_command_line(modules: tuple[str, ...], fit_own) -> None:
    fit_own("hopfield", *modules, options=[*SHORT, *NO_CALLBACKS, *FEW_IMAGES])


@pytest.mark.data
def test_own_cell_on_the_command_line(fit_own, data_dir: str, monkeypatch) -> None:
    monkeypatch.setenv("RBP_DATA_DIR", data_dir)
    fit_own("cora", "my_cells", options=["--trainer.max_epochs=2", *NO_CALLBACKS])


def test_own_graph_on_the_command_line(fit_own) -> None:
    printed = fit_own("cora", "my_graphs", options=["--trainer.max_epochs=30", *NO_CALLBACKS])
    (accuracy,) = re.findall(r"^  val/accuracy +(\S+)$", printed, re.MULTILINE)
    assert float(accuracy) > 0.9


def test_own_hyperparameter_on_the_command_line(fit_own) -> None:
    fit_own("hypergrad", "my_hyperparameters", options=["--trainer.max_epochs=2", *NO_CALLBACKS])
    *_, last = EventAccumulator("logs/hypergrad/version_0").Reload().Scalars("hyperparameters/noise")
    assert last.value != pytest.approx(0.1, rel=2e-3)  # its initial value


def test_own_images_on_the_command_line(checkout: Path, fit_own) -> None:
    (checkout / "my_images").mkdir()
    for name in "abcde":
        Image.effect_noise((20, 20), 100).save(checkout / "my_images" / f"{name}.png")
    (options,) = re.findall(r"`(--data.source folder[^`]*)`", OWN)
    fit_own("hopfield", options=[*options.split(), *SHORT, *NO_CALLBACKS, *FEW_IMAGES])


def test_yaml_examples_run(checkout: Path, cli) -> None:
    examples = [block for text in PAGES.values() for block in blocks("yaml", text)]
    assert examples
    for example in examples:
        (checkout / "example.yaml").write_text(example)
        options = ["--config", "configs/hopfield.yaml", "--config", "example.yaml", *SHORT, *FEW_IMAGES]
        status, _, err = cli("fit", *options)
        assert status == 0, err
