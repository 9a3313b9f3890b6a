"""The arrays of a case, for an interpreter without PyTorch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.peers.networks import Case


def save(path: Path, case: Case, exact: Tensor) -> None:
    """Writes a case into an .npz file.

    Args:
        path: The file.
        case: The case.
        exact: Its exact gradient.
    """
    with torch.no_grad():
        third, update = case.start, case.update(case.prepare(*case.parameters))
        for _ in range(3):
            third = update(third)
    arrays: dict[str, Any] = {f"parameter {place}": leaf.detach() for place, leaf in enumerate(case.parameters)}
    arrays |= {f"constant {name}": value for name, value in case.constants.items()}
    arrays |= {"start": case.start, "third": third, "exact": exact}
    for name, value in arrays.items():
        arrays[name] = value.numpy()
    np.savez(path, **arrays)
