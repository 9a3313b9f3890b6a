"""How a checkpoint names the cell of a model."""

import inspect
import warnings
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from rbp_lightning import UserError
from rbp_lightning.estimators.describe import describe


def save_with_cell(module: LightningModule, cell: nn.Module) -> None:
    """Saves the hyperparameters of a module as it is constructed, with its cell by name and not as an object.

    Args:
        module: The module, whose ``__init__`` calls this.
        cell: Its argument of that name.

    Raises:
        UserError: If the cell does not keep its arguments.
    """
    caller = inspect.currentframe()
    assert caller is not None  # CPython has frames
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`")
        module.save_hyperparameters(frame=caller.f_back)
    if isinstance(module.hparams["cell"], type(cell)):  # made in Python, and not by the command line from a config
        instantiator = "lightning.pytorch.cli.instantiate_module"
        module.save_hyperparameters({"cell": cell_config(cell), "_instantiator": instantiator})


def cell_config(cell: nn.Module) -> dict[str, Any]:
    """Describes a cell as the command line does, so that a checkpoint can name it instead of pickling it.

    Args:
        cell: The cell.

    Returns:
        Its ``class_path`` and ``init_args``.

    Raises:
        UserError: If the cell does not keep its arguments.
    """
    config = describe(cell)
    for name in inspect.signature(type(cell)).parameters:
        value = getattr(cell, name, cell)
        if value is not None and not isinstance(value, bool | int | float | str):
            raise UserError(
                f"{type(cell).__name__}: its argument {name!r} is not kept as a plain value in an attribute of that "
                f"name, so a checkpoint could not say how the cell was made: set self.{name}."
            )
    return config
