"""Principal components of node features, cached in a file."""

import contextlib
import hashlib
import os
import tempfile
from pathlib import Path

import numpy as np
import torch
from scipy.sparse.linalg import ArpackError
from sklearn.decomposition import PCA
from torch import Tensor

from rbp_lightning.errors import UserError


def principal_components(features: Tensor, count: int, folder: Path) -> Tensor:
    """Projects features onto their first principal components.

    They are computed on the CPU and kept in ``folder``, where that can be written; a file that is damaged there is made
    anew.

    Args:
        features: Features, of shape ``[num_nodes, num_features]``.
        count: Number of components.
        folder: Folder of the cache.

    Returns:
        The centred features in the basis of the components, float32, of shape ``[num_nodes, count]``.

    Raises:
        UserError: If there are not so many components, or none at all.

    Example:
        >>> import tempfile
        >>> principal_components(torch.eye(5), 2, Path(tempfile.mkdtemp())).shape
        torch.Size([5, 2])
    """
    if count >= min(features.shape):
        raise UserError(f"pca={count} must be below the number of nodes and of features, {min(features.shape)}.")
    table = features.numpy()
    digest = hashlib.sha256(f"{table.shape} {table.dtype}".encode() + table.tobytes())
    path = folder / f"pca{count}-{digest.hexdigest()}.npz"
    # Whatever damaged bytes make of the reader.
    with contextlib.suppress(Exception), np.load(path) as cached:
        if cached["features"].shape == (len(table), count):
            return torch.from_numpy(cached["features"])
    try:
        components = PCA(count, svd_solver="arpack", random_state=0).fit_transform(table).astype(np.float32)
    except ArpackError as error:
        raise UserError(
            f"pca={count}: the features have no principal components ({error}): set pca to null."
        ) from error
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        # Renamed when it is complete, so that an interruption leaves nothing that could be read.
        with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
            try:
                np.savez(file, features=components)
                os.replace(file.name, path)
            except BaseException:
                os.unlink(file.name)
                raise
    return torch.from_numpy(components)
