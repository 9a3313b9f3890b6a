"""Citation graphs and other graphs for node classification."""

import warnings
from collections.abc import Callable
from typing import Literal

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor
from torch.utils.data import DataLoader
from torch_geometric.data import Data, Dataset
from torch_geometric.transforms import NormalizeFeatures

from datamodules.epoch_sampler import epoch_sampler
from datamodules.files import data_directory
from datamodules.graph_checks import MASKS
from datamodules.graph_datasets import only_graph
from datamodules.graph_parts import cut, random_parts, spectral_parts
from datamodules.node_features import principal_components
from datamodules.node_splits import Split, public_split, split_by_class, split_by_ratio
from datamodules.planetoid_files import NAMES, load_planetoid
from rbp_lightning.errors import UserError, check_choice, check_count, check_number, check_seed


class CitationGraph(LightningDataModule):
    """Cora, CiteSeer, PubMed, or any PyG dataset of one graph, for node classification.

    A batch is a ``torch_geometric.data.Data`` with features ``x``, ``edge_index``, labels ``y`` (-1 for none) and the
    masks ``train_mask``, ``val_mask`` and ``test_mask``. It is the whole graph or, in training with ``num_parts``, a
    part of it.

    Several processes that train on the whole graph all do the same work. To share it, set ``num_parts`` to their number
    or a multiple: the graph is cut along few edges, and each epoch distributes its parts over the processes. A part's
    loss is the mean over its own training nodes, and all parts have the same weight.

    Args:
        name: ``"Cora"``, ``"CiteSeer"`` or ``"PubMed"``, in any case.
        dataset: A PyG dataset of one graph, instead of ``name``: on the command line a class path with its arguments,
            in Python a function that makes the dataset. Edges may be directed; edge weights are ignored.
        data_dir: A folder that holds the graph's files, or holds them in ``planetoid/raw`` or ``<name>/raw``. ``None``
            for the environment variable ``RBP_DATA_DIR`` or else ``data``.
        split: ``"public"`` uses the masks that come with the graph (of several, number ``split_seed``), ``"ratio"``
            draws shares of the nodes, ``"per_class"`` the same number of training nodes of each class.
        train_ratio: Share of training nodes in a ``"ratio"`` split; 0.01 in the paper.
        val_ratio: Share of validation nodes in a ``"ratio"`` split; the rest are test nodes.
        per_class: Training nodes of each class in a ``"per_class"`` split.
        num_val: Validation nodes in a ``"per_class"`` split.
        num_test: Test nodes in a ``"per_class"`` split.
        split_seed: Seed of a random split and of the order of the parts.
        normalize_features: Whether to apply PyG's ``NormalizeFeatures``: subtract the overall minimum, then divide each
            row by its sum if that exceeds 1.
        pca: Number of principal components to use instead of the features, cached beside the data; ``None`` for the
            features themselves.
        num_parts: Number of parts that the graph is cut into for training, one batch each; 1 for the whole graph.
        partition: How to cut it: ``"spectral"`` cuts few edges, ``"random"`` is fast.

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
        partition: Literal["spectral", "random"] = "spectral",
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        if callable(dataset) and callable(self.hparams["dataset"]):
            # A checkpoint cannot store a Python function, only its name.
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
        self.split_seed = check_seed(self, "split_seed", split_seed)
        self.normalize_features = normalize_features
        self.pca = None if pca is None else check_count(self, "pca", pca, 1)
        self.num_parts = check_count(self, "num_parts", num_parts, 1)
        self.partition = check_choice(self, "partition", partition, ("spectral", "random"))

    def prepare_data(self) -> None:
        """Downloads what is missing and fills the cache, in one process of each machine."""
        if self.dataset is None or self.pca is not None:
            self._load()
        else:  # making the dataset downloads and processes it; the graph itself is loaded in setup
            self.dataset()

    def setup(self, stage: str) -> None:
        """Loads the graph.

        Raises:
            UserError: If a file is missing or corrupt, or the dataset does not hold one well-formed graph.
        """
        if hasattr(self, "graph"):
            return
        graph = self._load()
        if self.num_parts > graph.num_nodes:
            raise UserError(
                f"CitationGraph: num_parts={self.num_parts} is more than the graph's {graph.num_nodes} nodes: lower it."
            )
        self.graph = graph

    def _load(self) -> Data:
        graph = load_planetoid(self.graph_name, self.data_dir) if self.dataset is None else only_graph(self.dataset())
        for name, mask in zip(MASKS, self._split(graph), strict=True):
            if not (mask & (graph.y >= 0)).any():
                raise UserError(f"No node of {name} has a label: choose another split.")
            graph[name] = mask
        if self.normalize_features:
            graph = NormalizeFeatures()(graph)
        if self.pca is not None:
            graph.x = principal_components(graph.x, self.pca, data_directory(self.data_dir) / "pca")
        return graph

    def _split(self, graph: Data) -> Split:
        if self.split == "ratio":
            return split_by_ratio(graph.y, self.train_ratio, self.val_ratio, self.split_seed)
        if self.split == "per_class":
            return split_by_class(graph.y, self.per_class, self.num_val, self.num_test, self.split_seed)
        return public_split(graph, self.split_seed)

    def transfer_batch_to_device(self, batch: Data, device: torch.device, dataloader_idx: int) -> Data:
        """Moves a graph to the device, where it stays from then on."""
        with torch.inference_mode(False):  # training cannot use tensors created in inference mode
            whole = batch.get("whole")  # the graph of a part: the model moves it if it uses it
            batch.whole = None
            moved: Data = batch.to(device)  # in place, so the next epoch finds it there
            batch.whole = whole
            return moved

    def teardown(self, stage: str) -> None:
        """Moves the graph back to the CPU, as Lightning does with the model."""
        if hasattr(self, "graph"):
            self.graph.cpu()

    def train_dataloader(self) -> DataLoader[Data]:
        """The whole graph, or its parts in an order that depends on seed and epoch."""
        processes = self.trainer.world_size if self.trainer else 1
        if self.num_parts % processes:
            warnings.warn(
                f"num_parts={self.num_parts} is not a multiple of {processes} processes, so some work is done "
                f"twice: set --data.num_parts to {processes} or a multiple.",
                stacklevel=2,
            )
        if self.num_parts == 1:
            return self.val_dataloader()
        parts = cut(self.graph, self._parts())
        sampler = epoch_sampler(self, parts, self.split_seed)
        return DataLoader(parts, batch_size=1, sampler=sampler, collate_fn=_single)  # type: ignore[arg-type]

    def _parts(self) -> list[Tensor]:
        edges, num_nodes = self.graph.edge_index, self.graph.num_nodes  # on the device, once validation has moved them
        if self.partition == "random":
            parts = random_parts(num_nodes, self.num_parts, self.split_seed)
        else:
            parts = spectral_parts(edges, num_nodes, self.num_parts)
        return [nodes.to(edges.device) for nodes in parts]

    def val_dataloader(self) -> DataLoader[Data]:
        """The whole graph."""
        return DataLoader([self.graph], batch_size=1, collate_fn=_single)  # type: ignore[arg-type]

    test_dataloader = predict_dataloader = val_dataloader


def _single(graphs: list[Data]) -> Data:
    (graph,) = graphs
    return graph
