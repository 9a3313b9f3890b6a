"""Reading the Planetoid files: nothing in them is executed that published files do not name."""

import collections
import hashlib
import pickle
import shutil
from pathlib import Path

import pytest

from datamodules import planetoid_files
from datamodules.planetoid_files import SHA256, check_pickle, load_planetoid
from rbp_lightning import UserError

NAMES = ["ind.cora." + end for end in ("allx", "ally", "graph", "test.index", "tx", "ty", "x", "y")]


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


@pytest.mark.parametrize("wrap", [lambda it: it, ListOf, lambda it: {"a": [it]}], ids=["bare", "called", "nested"])
@pytest.mark.parametrize("protocol", [0, 2, 5])
def test_a_pickle_that_names_anything_else_is_refused_before_it_runs(tmp_path, wrap, protocol) -> None:
    target, path = tmp_path / "touched", tmp_path / "evil"
    path.write_bytes(pickle.dumps(wrap(Touch(target)), protocol=protocol))
    with pytest.raises(UserError, match=r"evil is not a file of a citation graph \(it names .*, which no published"):
        check_pickle(path)
    assert not target.exists()
    pickle.loads(path.read_bytes())
    assert target.exists()  # it would have run


@pytest.mark.parametrize("content", [b"", b"\x80", b"not a pickle", pickle.dumps([1] * 100)[:-20]])
def test_a_damaged_pickle_is_refused(tmp_path, content) -> None:
    (tmp_path / "file").write_bytes(content)
    with pytest.raises(UserError, match="file is not a file of a citation graph"):
        check_pickle(tmp_path / "file")


def test_what_published_files_name_is_read(tmp_path) -> None:
    (tmp_path / "graph").write_bytes(pickle.dumps(collections.defaultdict(list, {0: [1]}), protocol=2))
    check_pickle(tmp_path / "graph")


def test_real_files_name_nothing_else(data_dir) -> None:
    for name in SHA256:
        if not name.endswith(".index"):
            check_pickle(Path(data_dir) / "planetoid" / "raw" / name)


@pytest.fixture
def cora(data_dir, tmp_path) -> Path:
    """A folder with Cora's own files, to tamper with."""
    for name in NAMES:
        shutil.copyfile(Path(data_dir) / "planetoid" / "raw" / name, tmp_path / name)
    return tmp_path


def test_the_files_may_lie_in_the_folder_itself(cora) -> None:
    assert load_planetoid("Cora", str(cora)).num_nodes == 2708


@pytest.mark.parametrize("tampered", ["ind.cora.tx", "ind.cora.graph", "ind.cora.test.index"])
@pytest.mark.parametrize("truncate", [False, True])
def test_a_tampered_or_truncated_file_is_refused(cora, tampered, truncate) -> None:
    content = bytearray((cora / tampered).read_bytes())
    content[len(content) // 2] ^= 1
    (cora / tampered).write_bytes(content[:-1] if truncate else content)
    with pytest.raises(UserError, match=rf"{tampered} is corrupt"):
        load_planetoid("Cora", str(cora))


def test_a_malicious_file_of_a_known_name_is_not_run(cora) -> None:
    target = cora / "touched"
    (cora / "ind.cora.y").write_bytes(pickle.dumps(Touch(target), protocol=2))
    with pytest.raises(UserError, match=r"ind\.cora\.y is corrupt"):
        load_planetoid("Cora", str(cora))
    assert not target.exists()


def test_without_a_network_one_sentence_names_all_that_is_missing(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(planetoid_files, "URLS", ["http://127.0.0.1:9"])
    with pytest.raises(UserError) as error:
        load_planetoid("Cora", str(tmp_path))
    assert all(name in str(error.value) for name in NAMES)
    assert f"into {tmp_path}/planetoid/raw" in str(error.value)
    assert str(error.value).count("\n") == 0
    assert list(tmp_path.rglob("ind.*")) == []


def test_a_file_whose_sum_is_right_is_still_read_with_care(cora, monkeypatch) -> None:
    target, evil = cora / "touched", cora / "ind.cora.y"
    evil.write_bytes(pickle.dumps(Touch(target), protocol=2))
    monkeypatch.setitem(planetoid_files.SHA256, "ind.cora.y", hashlib.sha256(evil.read_bytes()).hexdigest())
    with pytest.raises(UserError, match="which no published file does"):
        load_planetoid("Cora", str(cora))
    assert not target.exists()


def test_a_stray_file_does_not_hide_a_complete_folder(cora) -> None:
    (cora / "planetoid" / "raw").mkdir(parents=True)
    shutil.copyfile(cora / "ind.cora.x", cora / "planetoid" / "raw" / "ind.cora.x")
    assert load_planetoid("Cora", str(cora)).num_nodes == 2708
