"""A check of labels against the number of classes."""

from torch import Tensor

from rbp_lightning.errors import UserError


def check_labels(owner: object, num_classes: int, labels: Tensor) -> None:
    """Checks that labels are below the number of classes.

    Args:
        owner: The object with the argument ``num_classes``.
        num_classes: Number of classes.
        labels: Integers, of any shape.

    Raises:
        UserError: If a label is too large.
    """
    largest = int(labels.max()) if labels.numel() else -1
    if largest >= num_classes:
        raise UserError(
            f"{type(owner).__name__}: num_classes={num_classes}, but there is a label {largest}: set num_classes to "
            f"{largest + 1}."
        )
