"""Random damage to the bytes of a file, reproducible by seed."""

import bz2
import gzip
import io
import lzma
import pickletools
import random
import struct
import zipfile
from collections.abc import Callable
from contextlib import suppress

Change = Callable[[bytes, random.Random], bytes]

PAYLOAD = b"cposix\nsystem\n(S'touch executed'\ntR0"
"""Opcodes of a pickle that create a file in the current folder, and leave the stack as it was."""

NUMBERS = (0, 1, -1, 127, 128, 255, 256, 2**15, 2**16 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def flip_bits(content: bytes, draw: random.Random) -> bytes:
    flipped = bytearray(content)
    for _ in range(draw.choice((1, 1, 1, 2, 8, 64))):
        flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
    return bytes(flipped)


def truncate(content: bytes, draw: random.Random) -> bytes:
    return content[: draw.choice((draw.randrange(len(content)), len(content) - 1, min(len(content), 16)))]


def _block(content: bytes, draw: random.Random) -> tuple[int, int]:
    start = draw.randrange(len(content))
    return start, min(len(content), start + draw.choice((1, 4, 16, 256, len(content))))


def repeat_block(content: bytes, draw: random.Random) -> bytes:
    start, end = _block(content, draw)
    return content[:end] + content[start:end] * draw.choice((1, 1, 3)) + content[end:]


def remove_block(content: bytes, draw: random.Random) -> bytes:
    start, end = _block(content, draw)
    return content[:start] + content[end:]


def fill_block(content: bytes, draw: random.Random) -> bytes:
    start, end = _block(content, draw)
    return content[:start] + draw.choice((b"\0", b"\xff", b"0", b"\n"))[:1] * (end - start) + content[end:]


def write_number(content: bytes, draw: random.Random) -> bytes:
    """Overwrites some bytes, usually in the header, with an extreme number."""
    kind = draw.choice("BHIQ")
    number = draw.choice(NUMBERS) % 2 ** (8 * struct.calcsize(kind))
    start = draw.randrange(min(len(content), draw.choice((8, 32, 128, len(content)))))
    written = struct.pack(draw.choice("<>") + kind, number)
    return content[:start] + written + content[start + len(written) :]


def write_digits(content: bytes, draw: random.Random) -> bytes:
    """Replaces a decimal digit in a text by an unusual number."""
    digits = [at for at, byte in enumerate(content) if 48 <= byte < 58]
    if not digits:
        return flip_bits(content, draw)
    at = draw.choice(digits)
    text = draw.choice((b"-1", b"1e999", b"nan", b"0x10", b"9" * 30, b"9" * 5000, b"", "٣".encode(), b"1_0"))
    return content[:at] + text + content[at + 1 :]


def insert(content: bytes, draw: random.Random) -> bytes:
    start = draw.randrange(len(content) + 1)
    inserted = draw.choice(
        (b"\0", b"\n", b"\r", b'"', b"\xff\xfe", b"\t", b",", b": ", b"- ", b"&a *a ", b"!!python/name:os.system ")
    )
    return content[:start] + inserted + content[start:]


def insert_payload(content: bytes, draw: random.Random) -> bytes:
    """Inserts the payload between two opcodes of a pickle, or anywhere in another file."""
    places = []
    with suppress(ValueError):
        places = [place for _, _, place in pickletools.genops(content) if place]
    start = draw.choice(places) if places else draw.randrange(len(content) + 1)
    return content[:start] + PAYLOAD + content[start:]


def append(content: bytes, draw: random.Random) -> bytes:
    return content + draw.choice((b"\0", b"garbage" * 100, content, draw.randbytes(50)))


def replace(content: bytes, draw: random.Random) -> bytes:
    """Replaces the whole content."""
    evil = b"\x80\x02" + PAYLOAD + b"N."
    start = draw.randbytes(8) + content[8:]
    other = (b"", b"\0" * 1000, b"text, nothing else\n" * 20, evil, draw.randbytes(500), start)
    packed = (gzip.compress(content, mtime=0), bz2.compress(content), lzma.compress(content))
    return draw.choice((*other, *packed))


CHANGES: tuple[Change, ...] = (
    *(flip_bits, flip_bits, truncate, repeat_block, remove_block, fill_block, write_number, write_number),
    *(write_digits, insert, insert_payload, append, replace),
)


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Damages a content one to three times."""
    for _ in range(draw.choice((1, 1, 2, 3))):
        if content:
            content = draw.choice(CHANGES)(content, draw)
    return content


def in_gzip(content: bytes, draw: random.Random) -> bytes:
    """Damages the compressed content of a file; the gzip container stays valid."""
    return gzip.compress(damaged(gzip.decompress(content), draw), compresslevel=1, mtime=0)


def in_zip(content: bytes, draw: random.Random) -> bytes:
    """Damages a member of an archive; the checksums are updated."""
    file = io.BytesIO()
    with zipfile.ZipFile(io.BytesIO(content)) as whole, zipfile.ZipFile(file, "w") as archive:
        names = whole.namelist()
        pickles = [name for name in names if name.endswith(".pkl")]
        chosen = draw.choice(pickles) if draw.random() < 0.8 else draw.choice(names)
        for name in names:
            member = whole.read(name)
            archive.writestr(name, damaged(member, draw) if name == chosen else member)
    return file.getvalue()
