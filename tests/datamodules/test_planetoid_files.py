"""Reading the Planetoid files executes nothing but what the published files need."""

import hashlib
import pickle
import shutil
import struct
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.sparse import csr_matrix
from torch_geometric.io import read_planetoid_data

from datamodules import planetoid_files
from datamodules.planetoid_files import load_planetoid, read_planetoid
from datamodules.planetoid_pickles import MAX_EDGES, MAX_VALUES, read_matrix, read_neighbours
from rbp_lightning import UserError
from tests.limits import NO_FILES, bounded, make_no_file
from tests.planetoid import (
    CLASSES,
    ENDS,
    FIRST,
    TEST,
    TRAIN,
    WIDTH,
    array,
    named,
    neighbours,
    number,
    pack,
    pickled,
    small_contents,
    sparse,
    text,
    write,
)

NAMES = ["ind.cora." + end for end in ENDS]


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class ListOf:
    """Calls an allowed global, with a forbidden one among its arguments."""

    def __init__(self, inside: object) -> None:
        self.inside = inside

    def __reduce__(self):
        return list, ([self.inside],)


@pytest.mark.parametrize("read", [read_matrix, read_neighbours])
@pytest.mark.parametrize("wrap", [lambda it: it, ListOf, lambda it: {"a": [it]}], ids=["bare", "called", "nested"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_names_other_globals_is_refused_before_it_runs(tmp_path, read, wrap, protocol) -> None:
    target, path = tmp_path / "touched", tmp_path / "evil"
    path.write_bytes(pickle.dumps(wrap(Touch(target)), protocol=protocol))
    with pytest.raises(UserError, match="evil is not a file of a citation graph"):
        read(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # plain unpickling runs it


@pytest.mark.parametrize(
    "name",
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("__builtin__", "eval"),
        ("numpy", "load"),
        ("numpy.core.multiarray", "scalar"),
        ("collections", "OrderedDict"),
        ("datamodules.planetoid_pickles", "_Unpickler"),
    ],
)
@pytest.mark.parametrize("read", [read_matrix, read_neighbours])
def test_a_forbidden_global_is_named_in_the_error(tmp_path, read, name) -> None:
    (tmp_path / "file").write_bytes(pickled(named(*name) + pack(text(b"touch touched")) + b"R"))
    with pytest.raises(UserError, match=rf"file is not .*{name[0]}\.{name[1]}"):
        read(tmp_path / "file")


LISTS = named("collections", "defaultdict") + named("__builtin__", "list") + b"\x85R("
MATRIX = np.eye(3, dtype=np.float32)
BOMBS = {
    "memo": b"]r" + struct.pack("<I", 2**31 - 1),
    "memo, long form": b"]" + b"j" + struct.pack("<I", 2**32 - 1),
    "text": b"T" + struct.pack("<i", 2**31 - 1) + b"abc",
    "negative text": b"T" + struct.pack("<i", -5) + b"abc",
    "text, long form": b"\x8d" + struct.pack("<Q", 2**40) + b"abc",
    "bytes": b"\x96" + struct.pack("<Q", 2**40) + b"abc",
    "frame": b"\x95" + struct.pack("<Q", 2**60) + b"]",
    "integer": b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc",
    "nested tuples": LISTS + b")" + b"\x85" * 100_000 + b"]u",
    "shared lists": LISTS
    + number(0)
    + b"]("
    + number(1) * 5000
    + b"er\0\0\0\0"
    + b"".join(number(node) + b"j\0\0\0\0" for node in range(1, MAX_EDGES // 4000))
    + b"u",
    "dense shape": array(MATRIX, (2**30, 2**30)),
    "negative shape": array(MATRIX, (-1, -1)),
    "sparse shape": sparse(csr_matrix(MATRIX), (2**31 - 1, 2**31 - 1)),
    "negative sparse shape": sparse(csr_matrix(MATRIX), (-3, -3)),
    "sparse columns": sparse(csr_matrix(MATRIX), (3, MAX_VALUES // 3 + 1)),
    "sparse rows": sparse(csr_matrix(MATRIX), (2**20, 3)),
    "outside": sparse(csr_matrix(np.eye(3, 9, 6, dtype=np.float32)), (3, 3)),
    "dtype": array(MATRIX.astype(np.complex64)),
    "doubles": array(MATRIX.astype(np.float64)),
    "not finite": array(np.full((3, 3), np.nan, np.float32)),
    "one dimension": array(MATRIX.ravel()),
    "nothing": array(MATRIX[:0]),
    "state of a class": named("numpy", "ndarray") + b"}b",
    "state of list": named("__builtin__", "list") + b"}" + text(b"append") + b"Nsb",
    "nodes of text": neighbours({0: [1]}).replace(number(1), text(b"1")),
    "a text for a list": LISTS + number(0) + text(b"12") + b"u",
    "nodes of truth": neighbours({0: [1]}).replace(number(1), b"\x88"),
    "unfinished": b"(((",
    "empty": b"",
}


@pytest.mark.parametrize("bomb", BOMBS)
@pytest.mark.parametrize("read", [read_matrix, read_neighbours])
def test_memory_bombs_and_invalid_data_are_refused(tmp_path, read, bomb) -> None:
    (tmp_path / "file").write_bytes(pickled(BOMBS[bomb]))
    with bounded(30, 5), pytest.raises(UserError, match="file is not a file of a citation graph"):
        read(tmp_path / "file")


@pytest.mark.parametrize("kind", NO_FILES)
@pytest.mark.parametrize("end", ["allx", "graph", "test.index"])
def test_paths_that_are_not_regular_files_are_refused(tmp_path, end, kind) -> None:
    paths = write(tmp_path, small_contents())
    paths[end].unlink()
    make_no_file(paths[end], kind)
    with bounded(30, 5), pytest.raises(UserError, match=rf"ind\.small\.{end} is not a file"):
        read_planetoid(paths)


def test_a_small_graph_is_read(tmp_path) -> None:
    graph = read_planetoid(write(tmp_path, small_contents()))
    assert graph.x.shape == (FIRST + TEST, WIDTH)
    assert set(graph.y.tolist()) == set(range(CLASSES))
    assert [int(graph[f"{name}_mask"].sum()) for name in ("train", "val", "test")] == [TRAIN, 500, TEST]
    assert graph.edge_index.shape == (2, 2 * (FIRST + TEST))  # without self-loops
    paths = {end: str(path) for end, path in write(tmp_path, small_contents()).items()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # old names in NumPy and SciPy
        expected = read_planetoid_data(str(Path(paths["x"]).parent), "small")
    for name in expected.keys():  # noqa: SIM118
        assert torch.equal(graph[name], expected[name])


@pytest.mark.parametrize("name", ["Cora", "CiteSeer", "PubMed"])
def test_a_published_graph_equals_the_one_that_pyg_reads(name, data_dir) -> None:
    graph = load_planetoid(name, data_dir)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        expected = read_planetoid_data(f"{data_dir}/planetoid/raw", name.lower())
    graph.y[graph.y < 0] = 0
    for key in expected.keys():  # noqa: SIM118
        assert torch.equal(graph[key], expected[key])


MISMATCHED = {
    "allx": sparse(csr_matrix(np.eye(FIRST + 1, WIDTH, dtype=np.float32))),
    "ally": array(np.eye(FIRST - 1, CLASSES, dtype=np.int32)),
    "tx": sparse(csr_matrix(np.eye(TEST, WIDTH + 1, dtype=np.float32))),
    "ty": array(np.eye(TEST, CLASSES + 1, dtype=np.int32)),
    "y": array(np.eye(FIRST - 499, CLASSES, dtype=np.int32)),
    "graph": neighbours({0: [FIRST + TEST]}),
}
INDICES = {
    "too few": range(FIRST, FIRST + TEST - 1),
    "one twice": [*range(FIRST, FIRST + TEST - 1), FIRST],
    "one of the first": range(FIRST - 1, FIRST + TEST - 1),
    "negative": [*range(FIRST, FIRST + TEST - 1), -1],
    "large": [*range(FIRST, FIRST + TEST - 1), 2**31],
    "very large": [*range(FIRST, FIRST + TEST - 1), 10**30],
    "none": [],
    "text": ["a"] * TEST,
}


@pytest.mark.parametrize("end", MISMATCHED)
def test_files_that_do_not_belong_together_are_refused(tmp_path, end) -> None:
    paths = write(tmp_path, small_contents() | {end: pickled(MISMATCHED[end])})
    with bounded(30, 5), pytest.raises(UserError, match=r"ind\.small\."):
        read_planetoid(paths)


@pytest.mark.parametrize("kind", INDICES)
def test_invalid_indices_of_test_nodes_are_refused(tmp_path, kind) -> None:
    content = "\n".join(map(str, INDICES[kind])).encode()
    paths = write(tmp_path, small_contents() | {"test.index": content})
    with bounded(30, 5), pytest.raises(UserError, match=r"ind\.small\."):
        read_planetoid(paths)


@pytest.fixture
def cora(data_dir, tmp_path) -> Path:
    """A folder with copies of Cora's files."""
    for name in NAMES:
        shutil.copyfile(Path(data_dir) / "planetoid" / "raw" / name, tmp_path / name)
    return tmp_path


def test_the_files_may_be_in_data_dir_itself(cora) -> None:
    assert load_planetoid("Cora", str(cora)).num_nodes == 2708


@pytest.mark.parametrize("tampered", ["ind.cora.tx", "ind.cora.graph", "ind.cora.test.index"])
@pytest.mark.parametrize("truncate", [False, True])
def test_a_tampered_or_truncated_file_is_refused(cora, tampered, truncate) -> None:
    content = bytearray((cora / tampered).read_bytes())
    content[len(content) // 2] ^= 1
    (cora / tampered).write_bytes(content[:-1] if truncate else content)
    with pytest.raises(UserError, match=rf"{tampered} is corrupt"):
        load_planetoid("Cora", str(cora))


def test_a_malicious_file_with_a_known_name_is_not_run(cora) -> None:
    target = cora / "touched"
    (cora / "ind.cora.y").write_bytes(pickle.dumps(Touch(target), protocol=2))
    with pytest.raises(UserError, match=r"ind\.cora\.y is corrupt"):
        load_planetoid("Cora", str(cora))
    assert not target.exists()


def test_without_a_network_all_missing_files_are_named(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(planetoid_files, "URLS", ["http://127.0.0.1:9"])
    with pytest.raises(UserError) as error:
        load_planetoid("Cora", str(tmp_path))
    assert all(name in str(error.value) for name in NAMES)
    assert f"into {tmp_path}/planetoid/raw" in str(error.value)
    assert str(error.value).count("\n") == 0
    assert list(tmp_path.rglob("ind.*")) == []


def test_a_malicious_file_with_the_right_checksum_is_not_run(cora, monkeypatch) -> None:
    target, evil = cora / "touched", cora / "ind.cora.y"
    evil.write_bytes(pickle.dumps(Touch(target), protocol=2))
    monkeypatch.setitem(planetoid_files.SHA256, "ind.cora.y", hashlib.sha256(evil.read_bytes()).hexdigest())
    with pytest.raises(UserError, match=r"ind\.cora\.y is not"):
        load_planetoid("Cora", str(cora))
    assert not target.exists()


def test_the_folder_with_most_files_is_used(cora) -> None:
    (cora / "planetoid" / "raw").mkdir(parents=True)
    shutil.copyfile(cora / "ind.cora.x", cora / "planetoid" / "raw" / "ind.cora.x")
    assert load_planetoid("Cora", str(cora)).num_nodes == 2708
