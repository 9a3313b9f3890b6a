"""Restores the gradient estimator of a checkpoint."""

from os import PathLike, fspath

from rbp_lightning.checkpoint_file import load_checkpoint
from rbp_lightning.errors import UserError
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.describe import from_description


def estimator_from_checkpoint(path: str | PathLike[str]) -> GradientEstimator:
    """Creates the gradient estimator that is recorded in a checkpoint, with its solvers.

    No code from the checkpoint is executed or imported: the classes must be estimators or solvers that have been
    imported already, and they are created with plain values.

    Args:
        path: Path of the checkpoint of a Trainer with an estimator.

    Raises:
        UserError: If the file cannot be loaded or has no estimator, or a class has not been imported.

    Example:
        >>> from tempfile import NamedTemporaryFile
        >>> from rbp_lightning.estimators import describe
        >>> checkpoint = {"state_dict": {}, "pytorch-lightning_version": "2.6", "estimator": describe(JFB())}
        >>> with NamedTemporaryFile() as file:
        ...     torch.save(checkpoint, file.name)
        ...     type(estimator_from_checkpoint(file.name))
        <class 'rbp_lightning.estimators.jfb.JFB'>
    """
    if not isinstance(path, str | PathLike):
        raise UserError(f"estimator_from_checkpoint: path={path!r} is not a path: pass the path of a checkpoint.")
    description = load_checkpoint(fspath(path)).get("estimator")
    if not isinstance(description, dict):
        raise UserError(
            f"{fspath(path)!r} has no gradient estimator, because its Trainer had none: create one, such as Implicit()."
        )
    made: GradientEstimator = from_description(description, GradientEstimator)
    return made
