"""A graph whose nodes are to be classified."""

import copy
import warnings
from collections.abc import Callable
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader, DistributedSampler
from torch_geometric.data import Data, Dataset
from torch_geometric.transforms import NormalizeFeatures

from datamodules.files import data_directory
from datamodules.graph_datasets import only_graph
from datamodules.graph_parts import spectral_parts
from datamodules.node_features import principal_components
from datamodules.node_splits import split_by_class, split_by_ratio
from datamodules.planetoid_files import NAMES, load_planetoid
from rbp_lightning.errors import UserError, check_choice, check_count, check_number

MASKS = ("train_mask", "val_mask", "test_mask")


class CitationGraph(LightningDataModule):
    """Cora, CiteSeer, PubMed, or any PyG dataset of one graph, for the classification of its nodes.

    A batch is a ``torch_geometric.data.Data`` with features ``x``, ``edge_index``, labels ``y`` (-1 where there is
    none) and the masks ``train_mask``, ``val_mask`` and ``test_mask``. It is the whole graph, or with ``num_parts`` a
    part of it in training; validation, test and prediction are always on the whole graph.

    The whole graph under several processes is the same work done by each of them. To share it, set ``num_parts`` to
    their number or a multiple of it: the graph is cut once, along few edges, and each epoch deals its parts to the
    processes. The loss of a part is the mean over its own training nodes, and all parts count alike.

    Args:
        name: ``"Cora"``, ``"CiteSeer"`` or ``"PubMed"``, in any case.
        dataset: A PyG dataset of one graph, in place of the three: a class path with its arguments on the command line,
            a function that makes it in Python. Edges may have a direction; weights of edges are not used.
        data_dir: A folder that holds the graph's files, or holds them in ``planetoid/raw`` or ``<name>/raw``; ``None``
            is the environment variable ``RBP_DATA_DIR`` or else ``data``.
        split: ``"public"`` takes the masks that come with the graph (of several, number ``split_seed``), ``"ratio"``
            draws shares of the nodes and ``"per_class"`` as many training nodes of each class.
        train_ratio: Share of training nodes of ``"ratio"``; the paper's is 0.01.
        val_ratio: Share of validation nodes of ``"ratio"``; the rest are test nodes.
        per_class: Training nodes of each class of ``"per_class"``.
        num_val: Validation nodes of ``"per_class"``.
        num_test: Test nodes of ``"per_class"``.
        split_seed: Seed of a random split.
        normalize_features: Whether to scale the features as PyG's ``NormalizeFeatures`` does: their minimum is taken
            off, and those of a node are divided by their sum where that is above 1.
        pca: Number of principal components to take in place of the features, cached beside the data; ``None`` for none.
        num_parts: Number of parts that the graph is cut into for training, a batch each; 1 is the whole graph.

    Raises:
        UserError: If an argument is out of its range.

    Example:
        >>> from torch_geometric.datasets import KarateClub
        >>> data = CitationGraph(dataset=KarateClub, split="per_class", per_class=2, num_val=6, num_test=10)
        >>> data.setup("fit")
        >>> data.graph.x.shape, int(data.graph.train_mask.sum())
        (torch.Size([34, 34]), 8)
    """

    def __init__(
        self,
        name: str = "Cora",
        dataset: Callable[[], Dataset] | None = None,
        data_dir: str | None = None,
        split: Literal["public", "ratio", "per_class"] = "public",
        train_ratio: float = 0.01,
        val_ratio: float = 0.49,
        per_class: int = 20,
        num_val: int = 500,
        num_test: int = 1000,
        split_seed: int = 0,
        normalize_features: bool = True,
        pca: int | None = None,
        num_parts: int = 1,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if callable(dataset) and callable(self.hparams["dataset"]):
            # Made in Python: a checkpoint tells what it was, and cannot make it again.
            self.save_hyperparameters({"dataset": repr(dataset)})
        if name.lower() not in NAMES:
            raise UserError(f"CitationGraph: name={name!r} must be one of {', '.join(NAMES.values())}.")
        self.graph_name = NAMES[name.lower()]
        if dataset is not None and not callable(dataset):
            raise UserError("CitationGraph: dataset must be a function that makes the dataset, such as its class.")
        self.dataset = dataset
        self.data_dir = data_dir
        self.split = check_choice(self, "split", split, ("public", "ratio", "per_class"))
        self.train_ratio = check_number(self, "train_ratio", train_ratio, 0.0, 1.0, low_allowed=False)
        self.val_ratio = check_number(self, "val_ratio", val_ratio, 0.0, 1.0, low_allowed=False)
        if train_ratio + val_ratio >= 1:
            raise UserError(
                f"CitationGraph: train_ratio={train_ratio} and val_ratio={val_ratio} leave no test nodes: lower them."
            )
        self.per_class = check_count(self, "per_class", per_class, 1)
        self.num_val = check_count(self, "num_val", num_val, 1)
        self.num_test = check_count(self, "num_test", num_test, 1)
        self.split_seed = check_count(self, "split_seed", split_seed, 0)
        self.normalize_features = normalize_features
        self.pca = None if pca is None else check_count(self, "pca", pca, 1)
        self.num_parts = check_count(self, "num_parts", num_parts, 1)
        self._moved: dict[int, tuple[Data, Data]] = {}

    def prepare_data(self) -> None:
        """Downloads what is missing and fills the cache, in one process of each machine."""
        self._load()

    def setup(self, stage: str) -> None:
        """Loads the graph.

        Raises:
            UserError: If a file is missing or corrupt, or the dataset does not hold one graph with what is needed.
        """
        if not hasattr(self, "graph"):
            self.graph = self._load()
            if self.num_parts > self.graph.num_nodes:
                raise UserError(
                    f"CitationGraph: num_parts={self.num_parts} is more than the graph's {self.graph.num_nodes} nodes: "
                    "lower it."
                )

    def _load(self) -> Data:
        graph = load_planetoid(self.graph_name, self.data_dir) if self.dataset is None else only_graph(self.dataset())
        if self.split == "ratio":
            masks = split_by_ratio(graph.y, self.train_ratio, self.val_ratio, self.split_seed)
            graph.train_mask, graph.val_mask, graph.test_mask = masks
        elif self.split == "per_class":
            masks = split_by_class(graph.y, self.per_class, self.num_val, self.num_test, self.split_seed)
            graph.train_mask, graph.val_mask, graph.test_mask = masks
        else:
            for name in MASKS:
                if name not in graph:
                    raise UserError(f"The dataset has no {name}: set split to ratio or per_class.")
                if graph[name].dim() > 1:
                    graph[name] = graph[name][:, self.split_seed % graph[name].shape[1]]
        for name in MASKS:
            mask = graph[name]
            if mask.dtype != torch.bool or len(mask) != graph.num_nodes:
                raise UserError(f"{name} must be a bool for each node: convert it, or set split to ratio or per_class.")
            if not (mask & (graph.y >= 0)).any():
                raise UserError(f"No node of {name} has a label: take another split.")
        if self.normalize_features:
            graph = NormalizeFeatures()(graph)
        if self.pca is not None:
            graph.x = principal_components(graph.x, self.pca, data_directory(self.data_dir) / "pca")
        return graph

    def transfer_batch_to_device(self, batch: Data, device: torch.device, dataloader_idx: int) -> Data:
        """Copies each graph to the device once."""
        source, moved = self._moved.get(id(batch), (None, None))
        if source is not batch or moved is None or moved.x.device != device:
            # Training could not use tensors that validation makes in inference mode; Data.to changes its own object.
            with torch.inference_mode(False):
                moved = copy.copy(batch).to(device)
            self._moved[id(batch)] = batch, moved
        return moved

    def train_dataloader(self) -> DataLoader[Data]:
        """The whole graph, or its parts in an order that depends on the seed and the epoch."""
        processes = self.trainer.world_size if self.trainer else 1
        if self.num_parts % processes:
            warnings.warn(
                f"num_parts={self.num_parts} does not go round {processes} processes, so that some of their work is "
                f"the same: set --data.num_parts to {processes} or a multiple.",
                stacklevel=2,
            )
        if self.num_parts == 1:
            return self.val_dataloader()
        self._moved.clear()  # of parts that are no more
        parts = [
            self.graph.subgraph(nodes)
            for nodes in spectral_parts(self.graph.edge_index, self.graph.num_nodes, self.num_parts)
        ]
        # Lightning tells this sampler the epoch, which a resumed run needs to see the same order.
        sampler: DistributedSampler[Data] = DistributedSampler(
            parts,  # type: ignore[arg-type]
            num_replicas=processes,
            rank=self.trainer.global_rank if self.trainer else 0,
            seed=self.split_seed,
        )
        return DataLoader(parts, batch_size=1, sampler=sampler, collate_fn=_only)  # type: ignore[arg-type]

    def val_dataloader(self) -> DataLoader[Data]:
        """The whole graph."""
        return DataLoader([self.graph], batch_size=1, collate_fn=_only)  # type: ignore[arg-type]

    test_dataloader = predict_dataloader = val_dataloader


def _only(graphs: list[Data]) -> Data:
    (graph,) = graphs
    return graph
