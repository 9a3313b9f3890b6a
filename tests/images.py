"""Image files, and what is written into their headers."""

import io
import zlib

from PIL import Image


def saved(kind: str, width: int, height: int, mode: str = "L") -> bytes:
    """A black image as a file of one of Pillow's formats."""
    file = io.BytesIO()
    Image.new(mode, (width, height), 0).save(file, kind)
    return file.getvalue()


def with_checksums(content: bytes) -> bytes:
    """Sets the checksums of a PNG's chunks to what they should be."""
    fixed, at = bytearray(content), 8
    while at + 12 <= len(fixed):
        end = at + 8 + int.from_bytes(fixed[at : at + 4], "big")
        if end + 4 > len(fixed):
            break
        fixed[end : end + 4] = zlib.crc32(fixed[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(fixed)
