"""Reading the pickles of citation graphs: what they say is data, and nothing that they name is imported or called."""

import io
import math
import pickle
import pickletools
from itertools import chain
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from datamodules.files import read_bytes, refused_unless

MOST_FILE_BYTES = 2**26
"""A file may have no more bytes than these; the largest published one has 8 million."""

MOST_VALUES = 2**26
"""A matrix may have no more entries than these; the largest published one has 9 million."""

MOST_EDGES = 2**24
"""A graph may have no more edges than these; the largest published one has 90 thousand."""

Matrix: TypeAlias = NDArray[np.float32] | NDArray[np.int32]

KIND = "a file of a citation graph"

_MOST_TUPLES = 100
_OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS"),
}


class _Part:
    """Stands for what a pickle names, and keeps what the pickle says of it."""

    arguments: tuple[Any, ...] = ()
    state: Any = None

    def __init__(self, *arguments: Any) -> None:
        self.arguments = arguments

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Dtype(_Part):
    pass


class _Array(_Part):
    pass


class _SparseMatrix(_Part):
    pass


class _Neighbours(_Part, dict[Any, Any]):
    pass


GLOBALS = {
    ("__builtin__", "list"): _Part,
    ("collections", "defaultdict"): _Neighbours,
    ("numpy", "dtype"): _Dtype,
    ("numpy", "ndarray"): _Part,
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("scipy.sparse.csr", "csr_matrix"): _SparseMatrix,
}
"""All globals that the pickles of the published files name, and what stands for them here."""


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in GLOBALS:
            raise ValueError(f"it names {module}.{name}, which no published file does")
        return GLOBALS[module, name]


def read_matrix(path: Path) -> Matrix:
    """Reads a matrix, dense or sparse.

    Args:
        path: The file.

    Returns:
        The matrix, dense, of float32 or int32.

    Raises:
        UserError: If the file holds anything else, or more than ``MOST_VALUES`` values.
    """
    with refused_unless(path, KIND):
        content = _unpickled(path)
        matrix = _dense(content) if isinstance(content, _SparseMatrix) else _array(content)
        if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
            raise ValueError("it holds no matrix of finite values")
    return matrix


def read_neighbours(path: Path) -> NDArray[np.int64]:
    """Reads the neighbours of each node.

    Args:
        path: The file.

    Returns:
        The edges, of shape ``[2, num_edges]``: in one row the nodes, in the other their neighbours.

    Raises:
        UserError: If the file holds anything else, or more than ``MOST_EDGES`` edges.
    """
    with refused_unless(path, KIND):
        graph = _unpickled(path)
        if not isinstance(graph, _Neighbours) or any(type(near) is not list for near in graph.values()):
            raise ValueError("it holds no lists of neighbours")
        counts = [len(near) for near in graph.values()]
        if sum(counts) > MOST_EDGES:
            raise ValueError(f"it has {sum(counts)} edges, and {MOST_EDGES} are the limit")
        nodes, near = list(graph), list(chain.from_iterable(graph.values()))
        if any(type(node) is not int for node in chain(nodes, near)):
            raise ValueError("it holds nodes that are no numbers")
        edges = np.stack([np.repeat(np.array(nodes, np.int64), counts), np.array(near, np.int64)])
    return edges


def read_indices(path: Path) -> NDArray[np.int64]:
    """Reads a text of node numbers.

    Args:
        path: The file.

    Raises:
        UserError: If the file holds anything else.
    """
    with refused_unless(path, KIND):
        indices = np.array([int(number) for number in read_bytes(path, MOST_FILE_BYTES).split()], np.int64)
        if not len(indices):
            raise ValueError("it is empty")
    return indices


def _unpickled(path: Path) -> Any:
    content = read_bytes(path, MOST_FILE_BYTES)
    _check_instructions(content)
    return _Unpickler(io.BytesIO(content), encoding="latin1").load()


def _check_instructions(content: bytes) -> None:
    """Refuses instructions by which a small pickle takes much memory or makes Python crash."""
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _OPCODES:
            raise ValueError(f"it has the instruction {opcode.name}, which no published file has")
        # The unpickler has a list as long as the highest number.
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > count:
            raise ValueError(f"it numbers a value {argument} that is at most the {count}th")
        # Python computes the hash of nested ones by recursion.
        tuples += opcode.name.startswith("TUPLE")
        if tuples > _MOST_TUPLES:
            raise ValueError(f"it has more than {_MOST_TUPLES} tuples")


def _dense(matrix: _SparseMatrix) -> NDArray[Any]:
    state = matrix.state
    shape = state["_shape"]
    if not 0 < math.prod(shape) <= MOST_VALUES:
        raise ValueError(f"its matrix is {shape}; 1 to {MOST_VALUES} values can be read")
    data, indices, indptr = (_array(state[name]) for name in ("data", "indices", "indptr"))
    if indices.dtype != np.int32 or indptr.dtype != np.int32:
        raise ValueError("its indices are no integers")
    sparse = csr_matrix((data, indices, indptr), shape=shape)
    sparse.check_format(full_check=True)
    dense: NDArray[Any] = sparse.toarray()
    return dense


def _array(content: Any) -> NDArray[Any]:
    if not isinstance(content, _Array):
        raise ValueError("it holds no array")
    _, shape, dtype, by_columns, values = content.state
    kind = f"{dtype.state[1]}{dtype.arguments[0]}" if isinstance(dtype, _Dtype) else dtype
    if kind not in ("<f4", "<i4"):
        raise ValueError(f"it holds numbers of the type {kind}")
    return np.frombuffer(values.encode("latin1"), kind).reshape(shape, order="F" if by_columns else "C")
