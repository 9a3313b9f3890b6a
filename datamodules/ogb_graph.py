"""Graphs of the Open Graph Benchmark."""

import torch
from torch_geometric.data import InMemoryDataset
from torch_geometric.data.data import DataEdgeAttr, DataTensorAttr
from torch_geometric.data.storage import GlobalStorage
from torch_geometric.utils import to_undirected

from datamodules.files import data_directory
from datamodules.graph_checks import MASKS
from rbp_lightning.errors import UserError


class OGBGraph(InMemoryDataset):  # type: ignore[misc]
    """A graph of the Open Graph Benchmark (Hu et al., NeurIPS 2020) with one class per node, and its own split.

    The package ``ogb`` downloads and reads it. Examples are ``ogbn-arxiv`` and ``ogbn-products``.

    Args:
        name: Name of the data set.
        data_dir: Folder of the data. ``None`` for the environment variable ``RBP_DATA_DIR`` or else ``data``.
        undirected: Whether to add the reverse of each edge.

    Raises:
        UserError: If ``ogb`` is not installed, or has no such data set.

    Example:
        >>> from datamodules import CitationGraph
        >>> data = CitationGraph(dataset=lambda: OGBGraph("ogbn-arxiv"), normalize_features=False)
    """

    def __init__(self, name: str = "ogbn-arxiv", data_dir: str | None = None, undirected: bool = True) -> None:
        super().__init__()
        try:
            from ogb.nodeproppred import PygNodePropPredDataset
        except ImportError as error:
            raise UserError(
                f"OGBGraph: name={name!r} is read by the package ogb, which is missing: pip install ogb."
            ) from error
        # ogb loads its files with torch.load, which since PyTorch 2.6 accepts only types that are allowed.
        torch.serialization.add_safe_globals([DataEdgeAttr, DataTensorAttr, GlobalStorage])
        try:
            dataset = PygNodePropPredDataset(name, str(data_directory(data_dir)))
        except ValueError as error:
            raise UserError(f"OGBGraph: name={name!r}: {error}") from error
        graph = dataset[0]
        if undirected:
            graph.edge_index = to_undirected(graph.edge_index, num_nodes=graph.num_nodes)
        if graph.y is not None and graph.y.dim() == 2 and graph.y.shape[1] == 1:
            graph.y = graph.y[:, 0]
        split = dataset.get_idx_split()
        for mask, part in zip(MASKS, ("train", "valid", "test"), strict=True):
            graph[mask] = torch.zeros(graph.num_nodes, dtype=torch.bool)
            graph[mask][split[part]] = True
        self.data, self.slices = self.collate([graph])
