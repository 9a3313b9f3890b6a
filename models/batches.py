"""A check that a model gets batches of the right kind, and batch sizes for logging."""

from collections.abc import Collection, Mapping
from typing import Any, cast

from lightning.pytorch import LightningModule

from rbp_lightning import UserError


def weight(count: int) -> Any:
    """Returns the ``batch_size`` of a logged mean that is averaged over processes.

    Lightning averages the sizes over the processes as well, and would round an integer down.

    Args:
        count: The number of values that the mean is over.

    Example:
        >>> from models.batches import weight
        >>> weight(3)
        3.0
    """
    return float(count)


class BatchesOfOneKind(LightningModule):
    """A module that checks, in every stage, that its batches are of the right kind.

    Attributes:
        batch_kind: The class of its batches.
    """

    batch_kind: type = Mapping

    def batch_entries(self, stage: str) -> Collection[str]:
        """Returns the entries that a batch must have.

        Args:
            stage: ``"train"``, ``"val"``, ``"test"`` or ``"predict"``.
        """
        return ()

    def _check_kind(self, batch: Any, stage: str) -> None:
        entries = self.batch_entries(stage)
        if isinstance(batch, self.batch_kind) and all(entry in cast(Any, batch) for entry in entries):
            return
        datamodule = getattr(self.trainer, "datamodule", None)
        data = "the data loader" if datamodule is None else type(datamodule).__name__
        wanted = " with " + ", ".join(entries) if entries else ""
        found = " with " + ", ".join(map(str, batch)) if isinstance(batch, Mapping) else ""
        raise UserError(
            f"{type(self).__name__} takes batches that are a {self.batch_kind.__name__}{wanted}, but {data} gives a "
            f"{type(batch).__name__}{found}: choose data and a model that belong together."
        )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        """Checks the batch."""
        self._check_kind(batch, "train")

    def on_validation_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Checks the batch."""
        self._check_kind(batch, "val")

    def on_test_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Checks the batch."""
        self._check_kind(batch, "test")

    def on_predict_batch_start(self, batch: Any, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Checks the batch."""
        self._check_kind(batch, "predict")
