"""Principal components and their cache."""

import numpy as np
import pytest
import torch

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


def test_they_are_computed_once(tmp_path, monkeypatch) -> None:
    first = principal_components(features(), 3, tmp_path)
    other = principal_components(features(1), 3, tmp_path)
    files = list(tmp_path.iterdir())
    assert len(files) == 2
    monkeypatch.setattr(node_features, "PCA", None)
    assert torch.equal(principal_components(features(), 3, tmp_path), first)
    assert torch.equal(principal_components(features(1), 3, tmp_path), other)


@pytest.mark.parametrize("damage", ["truncate", "flip", "empty"])
def test_a_damaged_cache_is_made_anew(tmp_path, damage) -> None:
    first = principal_components(features(), 3, tmp_path)
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes({"truncate": content[: len(content) // 2], "flip": content, "empty": b""}[damage])
    assert torch.equal(principal_components(features(), 3, tmp_path), first)
    with np.load(path) as cached:
        assert torch.equal(torch.from_numpy(cached["features"]), first)


def test_an_interrupted_write_leaves_nothing(tmp_path, monkeypatch) -> None:
    def interrupted(file, **arrays) -> None:
        file.write(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(node_features.np, "savez", interrupted)
    with pytest.raises(KeyboardInterrupt):
        principal_components(features(), 3, tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_without_a_place_to_write_they_are_computed(tmp_path) -> None:
    (tmp_path / "file").write_text("no folder")
    assert principal_components(features(), 3, tmp_path / "file" / "pca").shape == (40, 3)


def test_too_many_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="pca=12 must be below the number of nodes and of features, 12"):
        principal_components(features(), 12, tmp_path)


def test_features_of_the_same_bytes_and_another_shape_are_others(tmp_path) -> None:
    principal_components(features(), 3, tmp_path)
    assert principal_components(features().reshape(24, 20), 3, tmp_path).shape == (24, 3)


def test_an_archive_of_another_shape_is_made_anew(tmp_path) -> None:
    first = principal_components(features(), 3, tmp_path)
    (path,) = tmp_path.iterdir()
    np.savez(path, features=np.zeros((2, 2), dtype=np.float32))
    assert torch.equal(principal_components(features(), 3, tmp_path), first)


def test_features_without_any_are_refused(tmp_path) -> None:
    with pytest.raises(UserError, match="pca=3: the features have no principal components"):
        principal_components(torch.zeros(40, 12), 3, tmp_path)
