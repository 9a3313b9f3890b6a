"""Principal components of node features, and their cache."""

import hashlib
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from datamodules import node_features
from datamodules.node_features import principal_components
from rbp_lightning import UserError
from tests.limits import NO_FILES, bounded, make_no_file


def features(seed: int = 0) -> torch.Tensor:
    return torch.rand(40, 12, generator=torch.Generator().manual_seed(seed))


def test_the_components_equal_those_of_the_singular_value_decomposition(tmp_path) -> None:
    found = principal_components(features(), 3, tmp_path)
    centred = (features() - features().mean(0)).double()
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    expected = left[:, :3] * values[:3]
    signs = (found * expected).sum(0).sign()
    torch.testing.assert_close(found.double() * signs, expected, rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32


class NoPCA:
    """A replacement for PCA that must not be used."""

    def __init__(self, *args, **kwargs) -> None:
        raise AssertionError("computed again")


def test_the_components_are_computed_once(tmp_path, monkeypatch) -> None:
    first = principal_components(features(), 3, tmp_path)
    other = principal_components(features(1), 3, tmp_path)
    monkeypatch.setattr(node_features, "PCA", NoPCA)
    assert torch.equal(principal_components(features(), 3, tmp_path), first)
    assert torch.equal(principal_components(features(1), 3, tmp_path), other)
    with pytest.raises(AssertionError, match="computed again"):
        principal_components(features(), 4, tmp_path)


def cached(folder: Path) -> Path:
    """Fills the cache; returns its file."""
    principal_components(features(), 3, folder)
    (path,) = folder.iterdir()
    return path


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text", "longer", "other input", "nan"])
def test_a_damaged_or_foreign_cache_is_replaced(tmp_path, damage) -> None:
    first = principal_components(features(), 3, tmp_path / "first")
    path, other = cached(tmp_path / "cache"), cached(tmp_path / "other")
    content, values = path.read_bytes(), np.full(first.shape, np.nan, np.float32).tobytes()
    principal_components(features(1), 3, tmp_path / "of other features")
    (of_others,) = (tmp_path / "of other features").iterdir()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    damaged = {
        "truncate": content[: len(content) // 2],
        "flip": bytes(flipped),
        "empty": b"",
        "text": b"no cache",
        "longer": content + b"x",
        "other input": of_others.read_bytes(),
        "nan": hashlib.sha256(bytes.fromhex(path.stem) + values).digest() + values,  # with a valid checksum
    }
    path.write_bytes(damaged[damage])
    assert torch.equal(principal_components(features(), 3, path.parent), first)
    assert path.read_bytes() == content == other.read_bytes()
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("kind", NO_FILES)
def test_a_cache_that_is_not_a_regular_file_is_replaced(tmp_path, kind) -> None:
    path = cached(tmp_path / "cache")
    path.unlink()
    make_no_file(path, kind)
    with bounded(30, 5):
        assert torch.equal(
            principal_components(features(), 3, path.parent), principal_components(features(), 3, tmp_path / "other")
        )
    assert path.is_file() != (kind == "folder")  # a folder is not removed
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize("folder", ["file/pca", "file", "a\0b", "a" * 300, "/proc/pca"])
def test_the_components_are_computed_if_the_cache_cannot_be_written(tmp_path, folder) -> None:
    (tmp_path / "file").write_text("no folder")
    assert principal_components(features(), 3, tmp_path / folder).shape == (40, 3)
    assert [entry.name for entry in tmp_path.iterdir()] == ["file"]


def test_a_partly_written_cache_is_never_read(tmp_path) -> None:
    values, path, enough = features().numpy(), tmp_path / "cache" / "file", threading.Event()

    def write() -> None:
        while not enough.is_set():
            node_features._write(path, bytes(32), values)

    node_features._write(path, bytes(32), values)
    with ThreadPoolExecutor() as pool:
        writers = [pool.submit(write) for _ in range(2)]
        found = [node_features._read(path, bytes(32), values.shape) for _ in range(1000)]
        enough.set()
    assert [writer.exception() for writer in writers] == [None, None]
    assert all(np.array_equal(components, values) for components in found)
    assert list(path.parent.iterdir()) == [path]


def test_too_many_components_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="pca=12 must be below"):
        principal_components(features(), 12, tmp_path)


def test_the_cache_distinguishes_shapes_of_the_same_bytes(tmp_path) -> None:
    principal_components(features(), 3, tmp_path)
    assert principal_components(features().reshape(24, 20), 3, tmp_path).shape == (24, 3)


def test_constant_features_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="pca=3"):
        principal_components(torch.zeros(40, 12), 3, tmp_path)
