"""Principal components of node features, cached on disk.

A cache is a file of numbers with a checksum. It is not ``joblib.Memory``, which unpickles its files, so that they could
run code.
"""

import hashlib
import os
import secrets
from contextlib import suppress
from pathlib import Path

import numpy as np
import sklearn
import torch
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackError
from sklearn.decomposition import PCA
from torch import Tensor

from datamodules.files import read_bytes
from rbp_lightning.errors import UserError


def principal_components(features: Tensor, count: int, folder: Path) -> Tensor:
    """Projects features onto their first principal components.

    They are computed on the CPU and cached in ``folder`` if it can be written to. The cache is used if it was made from
    these features and is undamaged and finite; otherwise it is made again.

    Args:
        features: Features, of shape ``[num_nodes, num_features]``.
        count: Number of components.
        folder: Folder of the cache.

    Returns:
        The centred features in the basis of the components, float32, of shape ``[num_nodes, count]``.

    Raises:
        UserError: If there are not that many components.

    Example:
        >>> import tempfile
        >>> principal_components(torch.eye(5), 2, Path(tempfile.mkdtemp())).shape
        torch.Size([5, 2])
    """
    if count >= min(features.shape):
        raise UserError(f"pca={count} must be below the number of nodes and of features, {min(features.shape)}.")
    values = np.ascontiguousarray(features.numpy())
    # All that the components depend on.
    inputs = f"{values.shape} {values.dtype} {count} {sklearn.__version__}".encode()
    fingerprint = hashlib.sha256(inputs + values.tobytes()).digest()
    path = folder / f"{fingerprint.hex()}.float32"
    components = _read(path, fingerprint, (len(values), count))
    if components is None:
        components = _compute(values, count)
        _write(path, fingerprint, components)
    return torch.from_numpy(components)


def _compute(features: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    try:
        components: NDArray[np.float32] = PCA(count, svd_solver="arpack", random_state=0).fit_transform(features)
    except ArpackError as error:
        raise UserError(
            f"pca={count}: the features have no principal components ({error}): set pca to null."
        ) from error
    return np.ascontiguousarray(components, dtype="<f4")


def _checksum(fingerprint: bytes, content: bytes) -> bytes:
    return hashlib.sha256(fingerprint + content).digest()


def _read(path: Path, fingerprint: bytes, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    """Reads a cached array; returns ``None`` if the file is anything else."""
    size = 4 * shape[0] * shape[1]
    try:
        stored = read_bytes(path, 32 + size)
    except UserError:
        return None
    content = stored[32:]
    if len(content) != size or stored[:32] != _checksum(fingerprint, content):
        return None
    components = np.frombuffer(bytearray(content), "<f4").reshape(shape)
    return components if np.isfinite(components).all() else None


def _write(path: Path, fingerprint: bytes, components: NDArray[np.float32]) -> None:
    """Writes a checksum and the array atomically, so that a concurrent reader finds all of it or nothing."""
    content = components.tobytes()
    part = path.with_name(f".{secrets.token_hex(8)}.part")
    with suppress(OSError, ValueError):  # no cache if the folder cannot be written to
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(_checksum(fingerprint, content) + content)
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)
