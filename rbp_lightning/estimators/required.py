"""A base class of modules that need a gradient estimator, with a helpful error if there is none."""

from typing import Any

from lightning.pytorch import LightningModule

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.describe import describe, described_call


class MissingEstimatorError(UserError, AttributeError):
    """A module has no gradient estimator. It is also an ``AttributeError``, so that ``hasattr`` returns ``False``."""


class NeedsEstimator(LightningModule):
    """Base class of modules that use the Trainer's gradient estimator as ``self.estimator``.

    If there is none, accessing it raises an error with the remedy. Loading a checkpoint does not restore the estimator,
    which belongs to the Trainer; but the checkpoint, even one with only weights, has its description, which the error
    then names. A subclass that overrides the checkpoint hooks must call those of ``super()``.

    Raises:
        MissingEstimatorError: If ``self.estimator`` is used before it is set.

    Example:
        >>> class Net(NeedsEstimator):
        ...     def forward(self, x):
        ...         return self.estimator(lambda h: 0.5 * torch.tanh(h) + x, torch.zeros_like(x)).state
        >>> Net()(torch.ones(3))
        Traceback (most recent call last):
        rbp_lightning.estimators.required.MissingEstimatorError: Net has no gradient estimator: ...
    """

    estimator: GradientEstimator
    _recorded_estimator: dict[str, Any] | None = None

    def __getattr__(self, name: str) -> Any:
        """Raises an error with the remedy if there is no estimator."""
        if name != "estimator":
            return super().__getattr__(name)
        remedy = "give its Trainer one, Trainer(callbacks=[Implicit()]), or set one, module.estimator = Implicit()"
        if (recorded := vars(self).get("_recorded_estimator")) is not None:
            remedy = (
                f"its checkpoint records {described_call(recorded)}; restore that with the checkpoint's path, "
                f"module.estimator = rbp_lightning.estimator_from_checkpoint(path); or {remedy}"
            )
        raise MissingEstimatorError(f"{type(self).__name__} has no gradient estimator: {remedy}.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Stores the estimator's description, which the callback does not add to a checkpoint of only weights."""
        if "estimator" in vars(self):
            checkpoint.setdefault("estimator", describe(self.estimator))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remembers the description of the checkpoint's estimator, for the error."""
        recorded = checkpoint.get("estimator")
        if isinstance(recorded, dict) and "class_path" in recorded and isinstance(recorded.get("init_args", {}), dict):
            self._recorded_estimator = recorded
