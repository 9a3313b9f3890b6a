"""What the command line answers before anything large is imported."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from rbp_lightning.version import __version__

_OVERVIEW = """\
usage: {program} COMMAND [--config FILE] [--OPTION=VALUE ...]

Networks that run to a fixed point: training, and how far to trust the gradient.

Train:
  fit        Train a model with the gradient that --estimator names.
  sweep      Train many times, by options, seeds or a search, and compare.

Evaluate:
  validate   Measure a model on the validation data.
  test       Measure a model on the test data.
  predict    Let a model predict.

Trust:
  audit      Compare the gradients of all estimators with the exact one.

Options of every command:
  -c, --config FILE  Take options from a YAML file; what comes later wins.
  --print_config     Print all options as YAML, and run nothing.
  --debug            Show the traceback of every error, as RBP_DEBUG=1 does.

More help:
  fit --help                 All options, those of this project first.
  fit --estimator.help       All estimators; with a NAME, the options of one.
  fit --model.help           All models; also --data.help, --optimizer.help,
                             --trainer.callbacks.help, --trainer.logger.help.
  --version                  The version.

Start with:
  {program} {start}
"""

_INSTALLED = {"torch", "lightning", "torch_geometric", "sklearn", "scipy", "PIL", "matplotlib", "pooch"}
"""What a Python lacks into which no checkout was installed, or the library alone."""

_CHECKOUT = "fit --config configs/hopfield.yaml"
_OWN = "fit --model my_file.MyModule --data my_file.MyData"


def program() -> str:
    """How this program is called, in a shell."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        return "python -m rbp_lightning"
    return f"python {script.name}" if script.suffix == ".py" else script.name


def answer(words: Sequence[str]) -> None:
    """Answers what needs no model, and ends the program: a call for help in general, for the version, or no word.

    Args:
        words: The program's arguments; nothing is done where they are something else.

    Example:
        >>> answer(["fit", "--help"])
    """
    if list(words) == ["--version"]:
        print(program(), __version__)
        sys.exit()
    if list(words) in ([], ["-h"], ["--help"]):
        start = _CHECKOUT if Path("configs/hopfield.yaml").is_file() else _OWN
        print(_OVERVIEW.format(program=program(), start=start), end="")
        sys.exit(0 if words else 2)


@contextmanager
def explained_imports() -> Iterator[None]:
    """Ends the program with one line where a package is missing that a checkout's installation brings.

    Example:
        >>> with explained_imports():
        ...     import torch
    """
    try:
        yield
    except ModuleNotFoundError as error:
        if error.name not in _INSTALLED:
            raise
        sys.exit(
            f"error: {sys.executable} has no {error.name}. `make demo` installs all into .venv, and "
            '`. .venv/bin/activate` makes it the Python of a shell; `pip install ".[tasks]"` installs into another one.'
        )
