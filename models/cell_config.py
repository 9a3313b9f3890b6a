"""Saving a model's cell in checkpoints by class path and arguments."""

import inspect
import warnings
from typing import Any

from lightning.pytorch import LightningModule
from torch import nn

from rbp_lightning import UserError
from rbp_lightning.estimators.describe import describe


def save_with_cell(module: LightningModule, cell: nn.Module) -> None:
    """Saves the hyperparameters of a module in its constructor, with the cell as a config and not as an object.

    Args:
        module: The module, whose ``__init__`` calls this.
        cell: The module's argument ``cell``.

    Raises:
        UserError: If the cell does not keep its arguments as attributes.
    """
    caller = inspect.currentframe()
    assert caller is not None  # CPython has frames
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`")
        module.save_hyperparameters(frame=caller.f_back)
    if isinstance(module.hparams["cell"], type(cell)):  # made in Python, not by the command line
        instantiator = "lightning.pytorch.cli.instantiate_module"
        module.save_hyperparameters({"cell": cell_config(cell), "_instantiator": instantiator})


def cell_config(cell: nn.Module) -> dict[str, Any]:
    """Describes a cell as a config, so that a checkpoint need not pickle it.

    Args:
        cell: The cell.

    Returns:
        The ``class_path`` and ``init_args`` of the cell.

    Raises:
        UserError: If the cell does not keep its arguments as attributes.
    """
    config = describe(cell)
    for name in inspect.signature(type(cell)).parameters:
        value = getattr(cell, name, cell)
        if value is not None and not isinstance(value, bool | int | float | str):
            raise UserError(
                f"{type(cell).__name__}: its argument {name!r} is not kept as a plain value in an attribute of that "
                f"name, so a checkpoint could not record it: set self.{name}."
            )
    return config
