"""Image files for tests, with manipulated headers."""

import io
import zlib
from pathlib import Path

import numpy as np
from PIL import Image


def saved(kind: str, width: int, height: int, mode: str = "L") -> bytes:
    """The content of a black image's file, in one of Pillow's formats."""
    file = io.BytesIO()
    Image.new(mode, (width, height), 0).save(file, kind)
    return file.getvalue()


def pixels_of(picture: Path | io.BytesIO) -> np.ndarray:
    """The pixels of an image file, of shape ``[height, width, 3]``."""
    with Image.open(picture) as opened:
        return np.asarray(opened.convert("RGB"))


def with_checksums(content: bytes) -> bytes:
    """Corrects the checksums of a PNG's chunks."""
    fixed, at = bytearray(content), 8
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)
