"""A small citation graph in files like the published ones: pickles of Python 2, assembled from opcodes."""

import struct
from pathlib import Path

import numpy as np
from scipy.sparse import csr_matrix

ENDS = ("allx", "ally", "graph", "test.index", "tx", "ty", "x", "y")
FIRST, TEST, TRAIN, WIDTH, CLASSES = 510, 12, 6, 5, 3
"""Nodes of allx, test nodes, training nodes, features and classes of the small graph."""


def named(module: str, name: str) -> bytes:
    return f"c{module}\n{name}\n".encode()


def number(value: int) -> bytes:
    return b"J" + struct.pack("<i", value)


def text(value: bytes) -> bytes:
    return b"T" + struct.pack("<i", len(value)) + value


def pack(*values: bytes) -> bytes:
    return b"(" + b"".join(values) + b"t"


def array(values: np.ndarray, shape: tuple[int, ...] | None = None) -> bytes:
    """The opcodes of an array; its pickled shape can be falsified."""
    dtype = named("numpy", "dtype") + pack(text(values.dtype.str[1:].encode()), number(0), number(1)) + b"R"
    dtype += pack(number(3), text(b"<"), b"N", b"N", b"N", number(-1), number(-1), number(0)) + b"b"
    start = named("numpy.core.multiarray", "_reconstruct")
    start += pack(named("numpy", "ndarray"), pack(number(0)), text(b"b")) + b"R"
    sizes = pack(*(number(size) for size in shape or values.shape))
    return start + pack(number(1), sizes, dtype, b"\x89", text(values.tobytes())) + b"b"


def sparse(matrix: csr_matrix, shape: tuple[int, int] | None = None) -> bytes:
    parts = {b"data": matrix.data, b"indices": matrix.indices, b"indptr": matrix.indptr}
    state = b"".join(text(name) + array(values) for name, values in parts.items())
    state += text(b"_shape") + pack(*(number(size) for size in shape or matrix.shape))
    return named("scipy.sparse.csr", "csr_matrix") + b")\x81}(" + state + b"ub"


def neighbours(graph: dict[int, list[int]]) -> bytes:
    lists = b"".join(
        number(node) + b"]r" + struct.pack("<I", count) + b"(" + b"".join(map(number, near)) + b"e"
        for count, (node, near) in enumerate(graph.items())
    )
    return named("collections", "defaultdict") + named("__builtin__", "list") + b"\x85R(" + lists + b"u"


def pickled(instructions: bytes) -> bytes:
    return b"\x80\x02" + instructions + b"."


def small_contents() -> dict[str, bytes]:
    """The contents of the eight files, by the ends of their names."""
    draw = np.random.default_rng(0)
    nodes = FIRST + TEST
    x = (draw.random((nodes, WIDTH)) < 0.5).astype(np.float32)
    y = np.eye(CLASSES, dtype=np.int32)[draw.integers(0, CLASSES, nodes)]
    test = FIRST + draw.permutation(TEST)
    graph = {node: [(node + 1) % nodes, (node + 7) % nodes, node] for node in range(nodes)}
    contents = {"graph": neighbours(graph)}
    for end, rows in (("allx", slice(FIRST)), ("x", slice(TRAIN)), ("tx", test)):
        contents[end] = sparse(csr_matrix(x[rows]))
    for end, rows in (("ally", slice(FIRST)), ("y", slice(TRAIN)), ("ty", test)):
        contents[end] = array(y[rows])
    return {
        "test.index": "".join(f"{node}\n" for node in test).encode(),
        **{end: pickled(instructions) for end, instructions in contents.items()},
    }


def write(folder: Path, contents: dict[str, bytes]) -> dict[str, Path]:
    """Writes the files; returns their paths by the ends of their names."""
    paths = {end: folder / f"ind.small.{end}" for end in contents}
    for end, path in paths.items():
        path.write_bytes(contents[end])
    return paths
