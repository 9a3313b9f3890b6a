"""Captions and labels for pictures."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

MIN_TEXT_SIZE, SHARE = 16, 30
"""The text size is the picture's width over ``SHARE``, as TensorBoard shows pictures small, and at least that."""

MARGIN = 8
"""The margin around text, in pixels."""


def enlarged(pixels: Pixels, width: int, height: int) -> Pixels:
    """Enlarges a picture by the largest integer factor that fits, at least 1, by repeating pixels.

    Args:
        pixels: The picture, of shape ``[height, width, 3]``.
        width: The maximum width.
        height: The maximum height.

    Returns:
        The enlarged picture.

    Example:
        >>> from models.annotated import enlarged
        >>> enlarged(np.zeros((2, 3, 3), dtype=np.uint8), width=10, height=10).shape
        (6, 9, 3)
    """
    factor = max(1, min(width // pixels.shape[1], height // pixels.shape[0]))
    return pixels.repeat(factor, axis=0).repeat(factor, axis=1)


def annotated(
    picture: Pixels, caption: str, rows: Mapping[int, str], columns: Mapping[int, str] | None = None
) -> Pixels:
    """Adds labels beside a picture and a caption above it, on white.

    Args:
        picture: The picture, of shape ``[height, width, 3]``.
        caption: The caption, one line.
        rows: Labels at its left, by the vertical position of their centre, in pixels.
        columns: Labels below it, by the horizontal position of their centre.

    Returns:
        The larger picture.

    Example:
        >>> from models.annotated import annotated
        >>> picture = np.zeros((100, 300, 3), dtype=np.uint8)
        >>> labelled = annotated(picture, "a black box", {50: "middle"})
        >>> bool((labelled[-108:-8, -308:-8] == picture).all())
        True
    """
    size = max(MIN_TEXT_SIZE, picture.shape[1] // SHARE)
    font = ImageFont.load_default(size)
    line = size + 2 * MARGIN
    columns = columns or {}
    left = max((int(font.getlength(label)) + 2 * MARGIN for label in rows.values()), default=MARGIN)
    height, width = picture.shape[:2]
    whole_width = max(left + width, int(font.getlength(caption)) + MARGIN) + MARGIN
    canvas = Image.new("RGB", (whole_width, line + height + (line if columns else MARGIN)), "white")
    canvas.paste(Image.fromarray(picture), (left, line))
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, line // 2), caption, "black", font, anchor="lm")
    for y, label in rows.items():
        inside = min(max(y, size // 2), height - size // 2)
        draw.text((left - MARGIN, line + inside), label, "black", font, anchor="rm")
    for x, label in columns.items():
        draw.text((left + x, line + height + line // 2), label, "black", font, anchor="mm")
    return np.asarray(canvas)
