"""Principal components of node features, cached on disk."""

from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from joblib import Memory
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError
from sklearn.decomposition import PCA
from torch import Tensor

from rbp_lightning.errors import UserError

Components: TypeAlias = Callable[[NDArray[np.float32], int], NDArray[np.float32]]


def principal_components(features: Tensor, count: int, folder: Path) -> Tensor:
    """Projects features onto their first principal components.

    They are computed on the CPU and cached by joblib in ``folder``, provided that it can be written.

    Args:
        features: Features, of shape ``[num_nodes, num_features]``.
        count: Number of components.
        folder: Folder of the cache.

    Returns:
        The centred features in the basis of the components, float32, of shape ``[num_nodes, count]``.

    Raises:
        UserError: If there are fewer components, or none at all.

    Example:
        >>> import tempfile
        >>> principal_components(torch.eye(5), 2, Path(tempfile.mkdtemp())).shape
        torch.Size([5, 2])
    """
    if count >= min(features.shape):
        raise UserError(f"pca={count} must be below the number of nodes and of features, {min(features.shape)}.")
    try:
        return torch.from_numpy(_cached(_components, folder)(features.numpy(), count))
    except ArpackError as error:
        raise UserError(
            f"pca={count}: the features have no principal components ({error}): set pca to null."
        ) from error


def _cached(compute: Components, folder: Path) -> Components:
    """Returns the function with a cache on disk, or without one if the folder cannot be written."""
    try:
        # Compressed files carry a checksum: what is damaged is computed again.
        cached: Components = Memory(folder, compress=True, verbose=0).cache(compute)
        return cached
    except OSError:
        return compute


def _components(features: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    components: NDArray[np.float32] = PCA(count, svd_solver="arpack", random_state=0).fit_transform(features)
    return components.astype(np.float32)
