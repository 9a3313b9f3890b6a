"""The gradient estimator that a checkpoint records."""

from os import PathLike, fspath

from rbp_lightning.checkpoint_file import load_checkpoint
from rbp_lightning.errors import UserError
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.describe import from_description


def estimator_from_checkpoint(path: str | PathLike[str]) -> GradientEstimator:
    """Makes the gradient estimator that a checkpoint records, with its solver.

    Nothing in the checkpoint is executed or imported: what it names has to be an estimator, or a solver of one, whose
    class is imported already, and is made with plain values.

    Args:
        path: A checkpoint's file, of a Trainer that had an estimator.

    Raises:
        UserError: If the file cannot be loaded or records no estimator, or the class is not imported.

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
        raise UserError(f"estimator_from_checkpoint: path={path!r} is no path: pass that of a checkpoint.")
    description = load_checkpoint(fspath(path)).get("estimator")
    if not isinstance(description, dict):
        raise UserError(
            f"{fspath(path)!r} records no gradient estimator, as its Trainer had none: make one, such as NeumannRBP()."
        )
    made: GradientEstimator = from_description(description, GradientEstimator)
    return made
