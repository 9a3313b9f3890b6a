"""Pictures of the images that an associative memory recalls."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from models.annotated import Pixels, annotated, enlarged
from models.first_batch_pictures import FirstBatchPictures

WRONG = np.array([214, 39, 40], dtype=np.uint8)
ROWS = ("clean", "corrupted", "recalled")


def recall_grid(clean: Tensor, corrupted: Tensor, recalled: Tensor) -> Pixels:
    """Arranges images in three rows: clean, corrupted, recalled. Wrongly recalled pixels are red.

    Args:
        clean: Images of shape ``[n, height, width]``, pixels from 0 to 1.
        corrupted: The images shown to the memory, of the same shape.
        recalled: The images that it recalled, of the same shape; a pixel is on above 0.5.

    Returns:
        One picture of shape ``[3 (height + 2), n (width + 2), 3]``, with grey lines between the images.

    Example:
        >>> from models.recall_pictures import recall_grid
        >>> images = torch.zeros(10, 8, 8)
        >>> recall_grid(images, images, images).shape
        (30, 100, 3)
    """
    rows = [
        torch.cat(list(pad(images.float(), (1, 1, 1, 1), value=0.5)), dim=1) for images in (clean, corrupted, recalled)
    ]
    pixels = (255 * torch.cat(rows)).byte().numpy()[..., None].repeat(3, axis=2)
    wrong = torch.cat(list(pad((clean > 0.5) != (recalled > 0.5), (1, 1, 1, 1), value=False)), dim=1)
    pixels[-len(wrong) :][wrong.numpy()] = WRONG
    return pixels


class RecallPictures(FirstBatchPictures):
    """Logs clean, corrupted and recalled images at each validation, test and prediction.

    The first ten images of the first batch are logged as ``<stage>/recall`` and saved as ``recall.png`` in the log
    folder.
    """

    def draw(self, content: Any, batch: dict[str, Tensor], folder: Path) -> tuple[str, Pixels]:
        """Draws the images; the outputs of the step are the recalled ones."""
        clean, corrupted, recalled = (
            images[:10].float().cpu() for images in (batch["clean"], batch["corrupted"], content)
        )
        grid = enlarged(recall_grid(clean, corrupted, recalled), width=1000, height=1000)
        wrong = int(((clean > 0.5) != (recalled > 0.5)).sum())
        caption = f"{len(clean)} memories, {wrong} of {clean.numel()} pixels wrong" + (" (red)" if wrong else "")
        labels = {(2 * row + 1) * len(grid) // 6: label for row, label in enumerate(ROWS)}
        return "recall", annotated(grid, caption, labels)
