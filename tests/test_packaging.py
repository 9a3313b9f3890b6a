"""What the library imports, what its wheel holds, and that the wheel works outside the checkout."""

import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest
import torch

from tests.cli.runs import Run, Zygote

ROOT = Path(__file__).parents[1]

START = (ROOT / "docs" / "start.md").read_text()
(MODULE,) = re.findall(r"`mine.py`.*?```python\n(.*?)```", START, re.DOTALL)
(COMMAND,) = re.findall(r"^rbp-lightning (fit .*)$", START, re.MULTILINE)


def run(*command: str | Path, folder: Path, **environment: str) -> str:
    """Runs a command that must succeed; returns its output."""
    variables = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    finished = subprocess.run(
        list(map(str, command)),
        cwd=folder,
        env={**variables, "OMP_NUM_THREADS": "1", **environment},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert finished.returncode == 0, finished.stderr[-3000:] + finished.stdout[-1000:]
    return finished.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that the build leaves no files in the checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    unwanted = shutil.ignore_patterns(".*", "build", "dist", "logs", "data", "*.egg-info", "__pycache__")
    shutil.copytree(ROOT, folder / "source", ignore=unwanted)
    options = ["--quiet", "--no-deps", "--no-build-isolation", "--no-index", "--wheel-dir", folder]
    run(sys.executable, "-m", "pip", "wheel", *options, folder / "source", folder=folder)
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheel and the dependencies of this environment.

    This environment's site-packages are only added to the path, so that their .pth files, among them that of an
    editable install of the checkout, are not read.
    """
    folder = tmp_path_factory.mktemp("environment")
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder)
    (packages,) = folder.glob("lib/python*/site-packages")
    borrowed = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    (packages / "borrowed.pth").write_text("\n".join(borrowed) + "\n")
    pip = [sys.executable, "-m", "pip", "--python", folder / "bin" / "python"]
    run(*pip, "install", "--quiet", "--no-deps", "--no-index", "--ignore-installed", wheel, folder=folder)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_only_the_library(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    (information,) = {name.partition("/")[0] for name in names} - {"rbp_lightning"}
    assert information.endswith(".dist-info")
    assert "rbp_lightning/py.typed" in names
    modules = {str(path.relative_to(ROOT)) for path in (ROOT / "rbp_lightning").rglob("*.py")}
    assert modules <= set(names)


@pytest.mark.slow
def test_the_installed_library_trains_outside_the_checkout(environment: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(f"{MODULE}\nimport rbp_lightning\nprint('from', rbp_lightning.__file__)\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "__init__.py").write_text("raise RuntimeError('these are the models of somebody else')\n")
    printed = run(
        environment / "bin" / "rbp-lightning",
        *shlex.split(COMMAND),
        "--trainer.accelerator=cpu",
        "--trainer.enable_progress_bar=false",
        folder=tmp_path,
    )
    (where,) = set(re.findall(r"^from (.*)$", printed, re.MULTILINE))
    assert Path(where).is_relative_to(environment)
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    assert torch.load(checkpoint, weights_only=True)["global_step"] == 8


@pytest.mark.parametrize(
    "module", ["models", "datamodules", "torch_geometric", "sklearn", "scipy", "matplotlib", "tqdm.auto"]
)
def test_importing_the_library_does_not_import(module: str, imported: tuple[set[str], set[str]]) -> None:
    assert module not in imported[0]


def test_no_module_of_the_library_imports_optional_packages(imported: tuple[set[str], set[str]]) -> None:
    """torchmetrics imports matplotlib if that is installed, so the test above cannot see it."""
    _, ours = imported
    assert {"torch", "lightning", "rbp_lightning"} <= ours
    assert not ours & {"matplotlib", "scipy", "sklearn", "torch_geometric", "torchmetrics", "tqdm"}


@pytest.fixture(scope="module")
def imported() -> tuple[set[str], set[str]]:
    """Modules imported with the public names but not by Lightning and PyTorch, and packages that the library imports.

    The latter include imports of the command line.
    """
    script = (
        "import builtins, lightning.pytorch, sys, torch\n"
        "known = set(sys.modules)\n"
        "inner, ours = builtins.__import__, set()\n"
        "def watch(name, namespace=None, *rest):\n"
        "    if str((namespace or {}).get('__name__')).startswith('rbp_lightning'):\n"
        "        ours.add(name.partition('.')[0])\n"
        "    return inner(name, namespace, *rest)\n"
        "builtins.__import__ = watch\n"
        "import rbp_lightning.api\n"
        "print(*set(sys.modules) - known)\n"
        "import rbp_lightning.cli\n"
        "print(*ours)\n"
    )
    beyond, ours = run(sys.executable, "-c", script, folder=ROOT).splitlines()
    return set(beyond.split()), set(ours.split())


def test_without_matplotlib_everything_but_the_plots_works(zygote: Zygote, tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MODULE)
    program = tmp_path / "program.py"
    program.write_text(
        "import sys\n"
        "for name in [name for name in sys.modules if name.startswith('matplotlib')]: del sys.modules[name]\n"
        "sys.modules['matplotlib'] = None\n"
        "sys.path.insert(0, '')\n"
        "from mine import Points, Regression\n"
        "from rbp_lightning import AuditTrainer, EquilibriumMonitor, NeumannRBP\n"
        "options = {'accelerator': 'cpu', 'max_epochs': 1, 'enable_progress_bar': False, 'logger': True}\n"
        "AuditTrainer(callbacks=[NeumannRBP(), EquilibriumMonitor(1, 1)], **options).fit(Regression(), Points())\n"
        "AuditTrainer(callbacks=[NeumannRBP()], **options).audit(Regression(), datamodule=Points(), steps=[1, 5])\n"
    )
    process = Run(zygote, tmp_path, [], {}, program)
    assert process.end() == 0, process.error()[-3000:]
    assert "not drawn, install matplotlib" in process.printed()
    assert list(tmp_path.rglob("audit.csv"))
    assert not list(tmp_path.rglob("audit.png"))
