"""The short help and the version of the command line, shown without importing PyTorch."""

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
  audit      Compare the gradients of the estimators with the exact one.

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
"""Packages that are missing if the checkout was not installed, or without its ``tasks`` extra."""

_CHECKOUT = "fit --config configs/hopfield.yaml"
_OWN = "fit --model my_file.MyModule --data my_file.MyData"


def program() -> str:
    """The command that starts this program."""
    script = Path(sys.argv[0])
    if script.name == "__main__.py":
        return "python -m rbp_lightning"
    return f"python {script.name}" if script.suffix == ".py" else script.name


def answer(words: Sequence[str]) -> None:
    """Prints the short help or the version and exits, if that is all the arguments ask for.

    Args:
        words: The program's arguments.

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
    """Context manager that exits with a one-line message if a package of the checkout's installation is missing.

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
            f"error: {sys.executable} has no package {error.name}. Install all packages into .venv with `make demo` "
            'and activate it with `. .venv/bin/activate`, or run `pip install ".[tasks]"` in your own environment.'
        )
