"""Principal components and their cache."""

import pytest
import torch
from joblib._store_backends import CacheWarning

from datamodules import node_features
from datamodules.node_features import principal_components
from rbp_lightning import UserError


def features(seed: int = 0) -> torch.Tensor:
    return torch.rand(40, 12, generator=torch.Generator().manual_seed(seed))


def test_they_are_those_of_the_singular_value_decomposition(tmp_path) -> None:
    found = principal_components(features(), 3, tmp_path)
    centred = (features() - features().mean(0)).double()
    left, values, _ = torch.linalg.svd(centred, full_matrices=False)
    expected = left[:, :3] * values[:3]
    signs = (found * expected).sum(0).sign()
    torch.testing.assert_close(found.double() * signs, expected, rtol=1e-4, atol=1e-5)
    assert found.dtype == torch.float32


class NoPCA:
    """Stands in for PCA where nothing is to be computed."""

    def __init__(self, *args, **kwargs) -> None:
        raise AssertionError("computed again")


def test_they_are_computed_once(tmp_path, monkeypatch) -> None:
    first = principal_components(features(), 3, tmp_path)
    other = principal_components(features(1), 3, tmp_path)
    monkeypatch.setattr(node_features, "PCA", NoPCA)
    assert torch.equal(principal_components(features(), 3, tmp_path), first)
    assert torch.equal(principal_components(features(1), 3, tmp_path), other)
    with pytest.raises(AssertionError, match="computed again"):
        principal_components(features(), 4, tmp_path)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty", "text"])
def test_a_damaged_cache_is_computed_again(tmp_path, damage) -> None:
    first = principal_components(features(), 3, tmp_path)
    (path,) = tmp_path.rglob("output.pkl")
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    damaged = {"truncate": content[: len(content) // 2], "flip": content, "empty": b"", "text": b"no pickle"}
    path.write_bytes(damaged[damage])
    assert torch.equal(principal_components(features(), 3, tmp_path), first)
    assert path.read_bytes() != damaged[damage]
    assert torch.equal(principal_components(features(), 3, tmp_path), first)


@pytest.mark.parametrize("folder", ["file/pca", "."])
def test_without_a_place_to_write_they_are_computed(tmp_path, folder) -> None:
    (tmp_path / "file").write_text("no folder")
    (tmp_path / "datamodules").write_text("where joblib would make a folder")
    assert principal_components(features(), 3, tmp_path / folder).shape == (40, 3)


def test_a_cache_that_becomes_unwritable_is_done_without(tmp_path, monkeypatch) -> None:
    def refuse(*args, **kwargs) -> None:
        raise OSError("read-only file system")

    monkeypatch.setattr("joblib._store_backends.numpy_pickle.dump", refuse)
    with pytest.warns(CacheWarning, match="Unable to cache to disk"):
        assert principal_components(features(), 3, tmp_path).shape == (40, 3)


def test_too_many_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="pca=12 must be below the number of nodes and of features, 12"):
        principal_components(features(), 12, tmp_path)


def test_features_of_the_same_bytes_and_another_shape_are_others(tmp_path) -> None:
    principal_components(features(), 3, tmp_path)
    assert principal_components(features().reshape(24, 20), 3, tmp_path).shape == (24, 3)


def test_features_without_any_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="pca=3: the features have no principal components"):
        principal_components(torch.zeros(40, 12), 3, tmp_path)
