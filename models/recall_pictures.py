"""Pictures of what an associative memory recalls."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from PIL import Image
from torch import Tensor
from torch.nn.functional import pad

from rbp_lightning.diagnostics.log_figure import log_figure


def recall_grid(clean: Tensor, corrupted: Tensor, recalled: Tensor) -> Tensor:
    """Arranges images in three rows: clean, corrupted, recalled.

    Args:
        clean: Images of shape ``[n, height, width]``, pixels from 0 to 1.
        corrupted: What the memory was shown, of the same shape.
        recalled: What it recalled, of the same shape.

    Returns:
        One image of shape ``[3 (height + 2), n (width + 2)]``, pixels from 0 to 1, with grey lines between the images.

    Example:
        >>> images = torch.zeros(10, 8, 8)
        >>> recall_grid(images, images, images).shape
        torch.Size([30, 100])
    """
    rows = [
        torch.cat(list(pad(images.float(), (1, 1, 1, 1), value=0.5)), dim=1) for images in (clean, corrupted, recalled)
    ]
    return torch.cat(rows)


class RecallPictures(Callback):
    """Shows clean, corrupted and recalled images at each validation, test and prediction.

    The first ten images of the first batch are logged to TensorBoard as ``<stage>/recall`` and saved as
    ``recall.png`` in the log folder, where the latest picture replaces earlier ones. Without a logger there is no
    picture.
    """

    def __init__(self) -> None:
        self._folder: str | None = None
        self._path: Path | None = None

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Finds the log folder, for which all processes have to ask."""
        self._folder = trainer.log_dir if trainer.logger is not None else None

    def _show(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: dict[str, Tensor],
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows the first batch, with the recalled images that the step returned."""
        if batch_idx > 0 or trainer.sanity_checking or not trainer.is_global_zero or self._folder is None:
            return
        assert trainer.state.stage is not None  # it is running
        stage = trainer.state.stage.dataloader_prefix
        grid = recall_grid(*(images[:10].float().cpu() for images in (batch["clean"], batch["corrupted"], outputs)))
        log_figure(trainer, f"{stage}/recall", grid, trainer.global_step)
        self._path = Path(self._folder) / "recall.png"
        self._path.parent.mkdir(parents=True, exist_ok=True)
        # Enlarged, or the picture would be tiny.
        side = max(1, 640 // grid.shape[1])
        pixels = np.kron((255 * grid).byte().numpy(), np.ones((side, side), dtype=np.uint8))
        Image.fromarray(pixels).save(self._path)

    on_validation_batch_end = on_test_batch_end = on_predict_batch_end = _show

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Says where the picture is."""
        if self._path is not None:
            print(f"Clean, corrupted and recalled images (rows): {self._path}")
