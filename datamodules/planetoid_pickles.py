"""Safe reading of the pickles of citation graphs: nothing that they name is imported or called."""

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

from datamodules.files import read_bytes, reading

MAX_FILE_BYTES = 2**26
"""The most bytes of a file; the largest published one has 8 million."""

MAX_VALUES = 2**26
"""The most entries of a matrix; the largest published one has 9 million."""

MAX_EDGES = 2**24
"""The most edges of a graph; the largest published one has 90 thousand."""

Matrix: TypeAlias = NDArray[np.float32] | NDArray[np.int32]

KIND = "a file of a citation graph"

_MAX_TUPLES = 100
_OPCODES = {
    *("PROTO", "STOP", "MARK", "GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"),
    *("NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "SHORT_BINSTRING", "BINSTRING"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_DICT", "SETITEM", "SETITEMS"),
}


class _Part:
    """Stands in for an object named by a pickle; keeps its arguments and state."""

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
"""All globals named by the pickles of the published files, with their stand-ins."""


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
        The dense matrix, float32 or int32.

    Raises:
        UserError: If the file holds anything else, or more than ``MAX_VALUES`` values.
    """
    with reading(path, KIND):
        content = _unpickled(path)
        matrix = _dense(content) if isinstance(content, _SparseMatrix) else _array(content)
        if matrix.ndim != 2 or not matrix.size or not np.isfinite(matrix).all():
            raise ValueError("it does not hold a matrix of finite values")
    return matrix


def read_neighbours(path: Path) -> NDArray[np.int64]:
    """Reads the neighbours of each node.

    Args:
        path: The file.

    Returns:
        The edges, of shape ``[2, num_edges]``: a row of nodes and a row of their neighbours.

    Raises:
        UserError: If the file holds anything else, or more than ``MAX_EDGES`` edges.
    """
    with reading(path, KIND):
        graph = _unpickled(path)
        if not isinstance(graph, _Neighbours) or any(type(near) is not list for near in graph.values()):
            raise ValueError("it does not hold lists of neighbours")
        counts = [len(near) for near in graph.values()]
        if sum(counts) > MAX_EDGES:
            raise ValueError(f"it has {sum(counts)} edges; the limit is {MAX_EDGES}")
        nodes, near = list(graph), list(chain.from_iterable(graph.values()))
        if any(type(node) is not int for node in chain(nodes, near)):
            raise ValueError("its nodes are not all numbers")
        edges = np.stack([np.repeat(np.array(nodes, np.int64), counts), np.array(near, np.int64)])
    return edges


def read_indices(path: Path) -> NDArray[np.int64]:
    """Reads a text file of node numbers.

    Args:
        path: The file.

    Raises:
        UserError: If the file holds anything else.
    """
    with reading(path, KIND):
        indices = np.array([int(number) for number in read_bytes(path, MAX_FILE_BYTES).split()], np.int64)
        if not len(indices):
            raise ValueError("it is empty")
    return indices


def _unpickled(path: Path) -> Any:
    content = read_bytes(path, MAX_FILE_BYTES)
    _check_instructions(content)
    return _Unpickler(io.BytesIO(content), encoding="latin1").load()


def _check_instructions(content: bytes) -> None:
    """Rejects instructions with which a small pickle takes much memory or crashes Python."""
    tuples = 0
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        if opcode.name not in _OPCODES:
            raise ValueError(f"it has the instruction {opcode.name}, which no published file has")
        # The unpickler allocates a list as long as the highest number.
        if opcode.name == "LONG_BINPUT" and int(argument or 0) > count:
            raise ValueError(f"it numbers a value {argument} that is at most the {count}th")
        # Python hashes nested tuples by recursion.
        tuples += opcode.name.startswith("TUPLE")
        if tuples > _MAX_TUPLES:
            raise ValueError(f"it has more than {_MAX_TUPLES} tuples")


def _dense(matrix: _SparseMatrix) -> NDArray[Any]:
    state = matrix.state
    shape = state["_shape"]
    if not 0 < math.prod(shape) <= MAX_VALUES:
        raise ValueError(f"its matrix is {shape}; 1 to {MAX_VALUES} values can be read")
    data, indices, indptr = (_array(state[name]) for name in ("data", "indices", "indptr"))
    if indices.dtype != np.int32 or indptr.dtype != np.int32:
        raise ValueError("its indices are not int32")
    sparse = csr_matrix((data, indices, indptr), shape=shape)
    sparse.check_format(full_check=True)
    dense: NDArray[Any] = sparse.toarray()
    return dense


def _array(content: Any) -> NDArray[Any]:
    if not isinstance(content, _Array):
        raise ValueError("it does not hold an array")
    _, shape, dtype, by_columns, values = content.state
    kind = f"{dtype.state[1]}{dtype.arguments[0]}" if isinstance(dtype, _Dtype) else dtype
    if kind not in ("<f4", "<i4"):
        raise ValueError(f"it holds numbers of the type {kind}")
    return np.frombuffer(values.encode("latin1"), kind).reshape(shape, order="F" if by_columns else "C")
