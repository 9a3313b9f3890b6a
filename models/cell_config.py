"""How a checkpoint names the cell of a model."""

import inspect
from typing import Any

from torch import nn

from rbp_lightning import UserError
from rbp_lightning.estimators.describe import describe


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
