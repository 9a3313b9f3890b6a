"""Pictures that say what they show."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

Pixels = NDArray[np.uint8]

LEAST_TEXT, SHARE = 16, 30
"""Least height of letters, in pixels, and how often it fits into a picture's width, as TensorBoard shows them small."""

MARGIN = 8
"""What is left around texts, in pixels."""


def enlarged(pixels: Pixels, width: int, height: int) -> Pixels:
    """Repeats pixels until a picture is about as large as it may be.

    Args:
        pixels: The picture, of shape ``[height, width, 3]``.
        width: Most pixels beside each other.
        height: Most pixels below each other.

    Returns:
        A picture whose sides are the same multiple of those before, at least 1.

    Example:
        >>> from models.annotated import enlarged
        >>> enlarged(np.zeros((2, 3, 3), dtype=np.uint8), width=10, height=10).shape
        (6, 9, 3)
    """
    side = max(1, min(width // pixels.shape[1], height // pixels.shape[0]))
    return pixels.repeat(side, axis=0).repeat(side, axis=1)


def annotated(
    picture: Pixels, caption: str, rows: Mapping[int, str], columns: Mapping[int, str] | None = None
) -> Pixels:
    """Writes labels beside a picture and a caption above it, on white.

    Args:
        picture: The picture, of shape ``[height, width, 3]``.
        caption: What it shows, in a line.
        rows: Labels at its left by the vertical position of their middle, in pixels.
        columns: Labels below it by the horizontal position of their middle.

    Returns:
        The larger picture.

    Example:
        >>> from models.annotated import annotated
        >>> picture = np.zeros((100, 300, 3), dtype=np.uint8)
        >>> labelled = annotated(picture, "a black box", {50: "middle"})
        >>> bool((labelled[-108:-8, -308:-8] == picture).all())
        True
    """
    size = max(LEAST_TEXT, picture.shape[1] // SHARE)
    font = ImageFont.load_default(size)
    line = size + 2 * MARGIN
    columns = columns or {}
    widest = max((int(font.getlength(label)) + 2 * MARGIN for label in rows.values()), default=MARGIN)
    height, width = picture.shape[:2]
    whole_width = max(widest + width, int(font.getlength(caption)) + MARGIN) + MARGIN
    canvas = Image.new("RGB", (whole_width, line + height + (line if columns else MARGIN)), "white")
    canvas.paste(Image.fromarray(picture), (widest, line))
    draw = ImageDraw.Draw(canvas)
    draw.text((MARGIN, line // 2), caption, "black", font, anchor="lm")
    for y, label in rows.items():
        inside = min(max(y, size // 2), height - size // 2)
        draw.text((widest - MARGIN, line + inside), label, "black", font, anchor="rm")
    for x, label in columns.items():
        draw.text((widest + x, line + height + line // 2), label, "black", font, anchor="mm")
    return np.asarray(canvas)
