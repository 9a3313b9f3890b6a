"""Detecting whether a graph has changed since something was computed from it."""

from collections.abc import Hashable, Sequence
from typing import Any

from torch import Tensor
from torch_geometric.data import Data


class Snapshot:
    """The tensors of a graph in their current state.

    Two snapshots are equal if they hold the same tensor objects and none was changed in place in between. A result that
    is cached on a graph with a snapshot is out of date once a new snapshot differs, because the graph was moved,
    converted or edited.

    Args:
        graph: The graph.
        names: The names of the tensors; some may be missing.
        key: Anything else that the result depends on.

    Example:
        >>> graph = Data(x=torch.ones(2, 3))
        >>> before = Snapshot(graph, ["x"])
        >>> before == Snapshot(graph, ["x"])
        True
        >>> graph.x += 1
        >>> before == Snapshot(graph, ["x"])
        False
    """

    def __init__(self, graph: Data, names: Sequence[str], key: Hashable = None) -> None:
        self._key = tuple(names), key
        self._tensors = [graph.get(name) for name in names]
        self._versions = [_version(tensor) for tensor in self._tensors]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot) or self._key != other._key or self._versions != other._versions:
            return False
        return all(one is two for one, two in zip(self._tensors, other._tensors, strict=True))

    __hash__ = None  # type: ignore[assignment]


def _version(value: Any) -> int:
    # Inference tensors have no version counter.
    return value._version if isinstance(value, Tensor) and not value.is_inference() else 0
