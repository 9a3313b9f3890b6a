"""A sentence for a module that was given no gradient estimator."""

from typing import Any

from lightning.pytorch import LightningModule

from rbp_lightning.errors import UserError
from rbp_lightning.estimators.base import GradientEstimator
from rbp_lightning.estimators.describe import describe, described_call


class MissingEstimatorError(UserError, AttributeError):
    """A module has no gradient estimator. It is an ``AttributeError`` too, so that ``hasattr`` answers no."""


class NeedsEstimator(LightningModule):
    """Base of modules that expect a Trainer's gradient estimator as ``self.estimator``.

    Where there is none, asking for it says what to do. A checkpoint does not bring it back, since the estimator is the
    Trainer's; but the checkpoint keeps its description, also one of weights alone, and the sentence names it. A
    subclass with checkpoint hooks of its own calls those of ``super()``.

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
        """Says what to do where there is no estimator."""
        if name != "estimator":
            return super().__getattr__(name)
        remedy = "give its Trainer one, Trainer(callbacks=[NeumannRBP()]), or set one, module.estimator = NeumannRBP()"
        if (recorded := vars(self).get("_recorded_estimator")) is not None:
            remedy = (
                f"its checkpoint records {described_call(recorded)}, which module.estimator = "
                f"rbp_lightning.estimator_from_checkpoint(path), with the checkpoint's path, makes again; or {remedy}"
            )
        raise MissingEstimatorError(f"{type(self).__name__} has no gradient estimator: {remedy}.")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keeps the estimator's description, which the Trainer's callback does not add to weights alone."""
        if "estimator" in vars(self):
            checkpoint.setdefault("estimator", describe(self.estimator))

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Remembers which estimator the checkpoint records."""
        recorded = checkpoint.get("estimator")
        if isinstance(recorded, dict) and "class_path" in recorded and isinstance(recorded.get("init_args", {}), dict):
            self._recorded_estimator = recorded
