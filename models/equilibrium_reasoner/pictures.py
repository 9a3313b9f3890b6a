"""Pictures of a puzzle's answer during the iteration."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datamodules.puzzles import IGNORED
from models.annotated import Pixels, annotated, enlarged
from models.first_batch_pictures import FirstBatchPictures

CLASSES = np.array(
    [
        [240, 240, 235],
        [31, 119, 180],
        [44, 160, 44],
        [148, 103, 189],
        [255, 187, 60],
        [140, 86, 75],
        [227, 119, 194],
        [23, 190, 207],
        [188, 189, 34],
        [150, 150, 150],
    ],
    dtype=np.uint8,
)
"""The colours of the classes."""

WRONG = np.array([214, 39, 40], dtype=np.uint8)
OUTSIDE = np.array([40, 40, 40], dtype=np.uint8)

ROWS, PANELS, FRAMES = 300, 8, 60
"""The most rows of a sequence's picture, panels of a grid's picture, and frames of its animation."""

GAP = 90
"""The least distance between labels of a sequence's picture, in pixels."""

WIDTH, HEIGHT = 1024, 640
"""The largest size of a picture, in pixels."""


def coloured(answers: Tensor, targets: Tensor | None = None) -> Pixels:
    """Colours each position by its class, wrong ones red, and those that are not part of the answer dark.

    Args:
        answers: Classes, int64 of any shape.
        targets: The correct classes, of the same shape; ``None`` marks nothing.

    Returns:
        The colours, of shape ``[*answers.shape, 3]``.

    Example:
        >>> from models.equilibrium_reasoner.pictures import coloured
        >>> coloured(torch.tensor([0, 1]), torch.tensor([0, 0])).tolist()
        [[240, 240, 235], [214, 39, 40]]
    """
    pixels: Pixels = CLASSES[answers.cpu().numpy() % len(CLASSES)]
    if targets is not None:
        right = targets.cpu().numpy()
        pixels[answers.cpu().numpy() != right] = WRONG
        pixels[right == IGNORED] = OUTSIDE
    return pixels


def filmstrip(frames: list[Pixels]) -> Pixels:
    """Arranges the frames of a sequence below each other, or those of a grid side by side.

    Args:
        frames: The frames, of shape ``[length, 3]`` or ``[height, width, 3]``.
    """
    if frames[0].ndim == 2:
        return np.stack(frames)
    return np.concatenate([np.pad(frame, ((1, 1), (1, 1), (0, 0)), constant_values=127) for frame in frames], axis=1)


def labelled_strip(frames: list[Pixels], steps: list[int], caption: str) -> Pixels:
    """Arranges frames as a filmstrip labelled with their steps; of many grids, only some are shown.

    Args:
        frames: The frames, of shape ``[length, 3]`` or ``[height, width, 3]``.
        steps: The step of each frame.
        caption: The caption.
    """
    if frames[0].ndim == 2:
        strip = enlarged(filmstrip(frames), WIDTH, HEIGHT)
        height = len(strip) // len(frames)
        labels = {index * height + height // 2: f"step {steps[index]}" for index in spread(frames, len(strip) // GAP)}
        return annotated(strip, caption, labels)
    chosen = spread(frames, PANELS)
    strip = enlarged(filmstrip([frames[index] for index in chosen]), WIDTH, HEIGHT)
    width = strip.shape[1] // len(chosen)
    labels = {place * width + width // 2: str(steps[index]) for place, index in enumerate(chosen)}
    return annotated(strip, caption, {}, labels)


def spread(frames: Sequence[Any], most: int) -> list[int]:
    """Chooses evenly spaced frames, including the first and the last one.

    Args:
        frames: All frames.
        most: The most frames to choose; at least 2 are chosen.

    Example:
        >>> from models.equilibrium_reasoner.pictures import spread
        >>> spread(range(10), 4), spread(range(2), 4)
        ([0, 3, 6, 9], [0, 1])
    """
    chosen: list[int] = np.unique(np.linspace(0, len(frames) - 1, min(len(frames), max(2, most)), dtype=int)).tolist()
    return chosen


class ThinkingPictures(FirstBatchPictures):
    """Shows how the answer to a puzzle evolves, at each validation, test and prediction.

    The first puzzle of each size is solved again, and its answers after all or some of the steps are drawn into
    ``thinking_<size>.png`` in the log folder: below each other for a sequence, side by side for a grid, which also gets
    an animation, ``thinking_<size>.gif``. Wrong positions are red. Loggers get the picture as
    ``<stage>/thinking_<size>``.
    """

    def content(self, module: Any, outputs: Any, batch: dict[str, Tensor]) -> tuple[list[int], list[Tensor]]:
        """Solves the first puzzle, and returns steps and the answers after them."""
        most, frames = module.budgets[-1], FRAMES if batch["inputs"].dim() == 4 else ROWS
        steps = np.unique(np.linspace(1, most, min(most, frames), dtype=int)).tolist()
        with torch.inference_mode():
            return steps, [scores[0].argmax(0) for _, scores, _ in module.think(batch["inputs"][:1], steps)]

    def draw(self, content: Any, batch: dict[str, Tensor], folder: Path) -> tuple[str, Pixels]:
        """Draws the first puzzle."""
        steps, answers = content
        targets = batch["targets"][0] if "targets" in batch else None
        frames = [coloured(answer, targets) for answer in answers]
        # Frames after the last change show nothing new.
        changes = [index for index in range(1, len(answers)) if not torch.equal(answers[index], answers[index - 1])]
        frames, steps = frames[: max(changes, default=0) + 1], steps[: max(changes, default=0) + 1]
        size = int(batch["size"][0])
        if batch["inputs"].dim() == 4:
            animation = folder / f"thinking_{size}.gif"
            animation.parent.mkdir(parents=True, exist_ok=True)
            first, *others = [
                Image.fromarray(enlarged(frame, WIDTH // 3, WIDTH // 3)) for frame in [*frames, *[frames[-1]] * 10]
            ]
            first.save(animation, save_all=True, append_images=others, duration=100, loop=0)
        caption = f"size {size}: the answer by step"
        if targets is not None:
            wrong = int(((answers[-1] != targets) & (targets != IGNORED)).sum())
            caption += f", wrong in red: {wrong} in the end"
        return f"thinking_{size}", labelled_strip(frames, steps, caption)
